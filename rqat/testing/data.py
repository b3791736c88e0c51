"""The suites of sources and tasks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, get_args

from ..contracts import Comparison, Completion, LoadedModel, Row, Source, Split, Task, TokenRow, Verdict
from ..errors import DataError
from ..keys import ModelKeys
from ..registry import Registry
from .suite import Suite, expect

SPLITS: tuple[Split, ...] = get_args(Split)


class SourceSuite(Suite):
    """Rows that training and calibration can use, the same on every machine, with splits kept apart.

    Looked at is the split 'train', or another one of a source that has nothing to train on. A source that asks for the
    model is given the tiny reasoner, once for every split and seed, and asked again.

    Class attributes:
        rows: how many of each split are looked at.
    """

    kind = "source"
    rows: ClassVar[int] = 200

    def test_rows_are_usable(self) -> None:
        """`text`, `prompt` or `messages`; all other fields but a template's settings are strings, and not all empty."""
        split, found = self._first()
        expect(found, f"the split '{split}' has no rows")
        for number, row in enumerate(found):
            unknown = set(row) - set(Row.__annotations__)
            expect(not unknown, f"row {number} has unknown fields: {', '.join(sorted(unknown))}")
            whole = "text" in row or "prompt" in row or "messages" in row
            expect(whole, f"row {number} has neither text nor a prompt")
            plain = {name: value for name, value in row.items() if name not in ("messages", "template", "place")}
            expect(all(isinstance(value, str) for value in plain.values()), f"row {number} holds something but strings")
            expect(row.get("messages") or any(str(value).strip() for value in plain.values()), f"row {number} is empty")

    def test_the_same_seed_gives_the_same_rows(self) -> None:
        """Also from a second object."""
        split, found = self._first(seed=3)
        expect(found == self._rows(split, 3), "two readings with one seed differ")

    def test_splits_share_no_row(self) -> None:
        """A source without one of the splits says so with a DataError."""
        first, rows = self._first()
        seen = {_asked(row): first for row in rows}
        for split in SPLITS[SPLITS.index(first) + 1 :]:
            try:
                found = self._rows(split)
            except DataError as error:
                expect(str(error), f"the split '{split}' is missing, and the error does not say why")
                continue
            for row in found:
                text = _asked(row)
                expect(seen.setdefault(text, split) == split, f"in '{seen[text]}' and '{split}': {text[:60]!r}")

    def test_producing_again_changes_nothing(self) -> None:
        """Of a source that asks for the model: `produce` is called again in the same folder after an interruption."""
        made: Source = self.make()
        if not self.card.model:
            return
        with TemporaryDirectory() as folder:
            found = []
            for _ in range(2):
                made.produce(Path(folder), _reasoner(), "train", 0)
                made.folder = Path(folder)
                found.append(list(made.rows("train", 0)))
            expect(found[0] == found[1], "produce, called again in the same folder, left other rows")

    def _first(self, seed: int = 0) -> tuple[Split, list[Row]]:
        """The first split that there is, and its rows.

        Raises:
            DataError: there is none; why there is no 'train'.
        """
        failures = []
        for split in SPLITS:
            try:
                return split, self._rows(split, seed)
            except DataError as error:
                failures.append(error)
        raise failures[0]

    def _rows(self, split: Split, seed: int = 0) -> list[Row]:
        made: Source = self.make()
        with TemporaryDirectory() as folder:
            if self.card.model:
                made.produce(Path(folder), _reasoner(), split, seed)
                made.folder = Path(folder)
            return list(itertools.islice(made.rows(split, seed), self.rows))


def _asked(row: Row) -> str:
    """What tells a row from others: its text, its prompt, or the turns before the completion."""
    turns = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
    return row.get("text") or row.get("prompt") or "\n".join(turns)


@cache
def _reasoner() -> LoadedModel:
    """What a source that asks for the model is given."""
    from ..generation.complete import complete_rows
    from ..model.load import load_model

    model, tokenizer = load_model(ModelKeys(path="builtin:tiny-reasoner"))

    def complete(
        rows: Sequence[Row], samples: int = 1, *, total: int | None = None, **settings: Any
    ) -> list[list[Completion]]:
        return complete_rows(model, tokenizer, rows, samples, **settings)

    def grade(task: str, completion: str, row: Row) -> Verdict:
        registry = Registry.current()
        card = registry.card("task", task)
        found: Verdict = registry.make(card, registry.options(card, {})).grade(completion, row["answer"], row)
        return found

    return LoadedModel(model, tokenizer, complete, grade)


class TaskSuite(Suite):
    """Problems in a fixed order, and a grader that tells right from wrong.

    Class attributes:
        problems: how many are looked at.
    """

    kind = "task"
    problems: ClassVar[int] = 50

    def right(self, answer: str) -> str:
        """A completion that ends in `answer`, as a model would write it."""
        return f"Step by step, this is what follows.\nThe answer is \\boxed{{{answer}}}."

    def wrong(self, answer: str) -> str:
        """A completion that ends in another answer."""
        return self.right("-987654321")

    def test_problems_have_prompts_and_answers(self) -> None:
        """Non-empty strings, always in one order."""
        found = self.make().problems()
        expect(len(found), "there are no problems")
        expect(list(found) == list(self.make().problems()), "two readings of the problems differ")
        for number, row in enumerate(found):
            for name in ("prompt", "answer"):
                expect(isinstance(row.get(name), str) and row[name], f"problem {number} has no {name}")

    def test_it_accepts_its_own_answers(self) -> None:
        """Every one of them, written as a model would."""
        made: Task = self.make()
        for number, row in enumerate(list(made.problems())[: self.problems]):
            verdict = made.grade(self.right(row["answer"]), row["answer"], row)
            expect(verdict == "correct", f"problem {number}: its own answer {row['answer']!r} is graded '{verdict}'")

    def test_it_rejects_other_answers(self) -> None:
        """Another answer, no answer, an empty completion."""
        made: Task = self.make()
        for number, row in enumerate(list(made.problems())[: self.problems]):
            for completion in (self.wrong(row["answer"]), "I do not know.", ""):
                verdict = made.grade(completion, row["answer"], row)
                expect(verdict in get_args(Verdict), f"grade returned {verdict!r}")
                expect(verdict != "correct", f"problem {number}: {completion!r} is graded 'correct'")


class ComparisonSuite(Suite):
    """Figures of a model beside its original: of the tiny reasoner beside itself, and beside itself made worse.

    Class attributes:
        rows: how many are compared on.
    """

    kind = "task"
    rows: ClassVar[int] = 4

    def test_a_model_is_nearest_to_itself(self) -> None:
        """The first figure of the card is no larger for the original than for a model with noise in its weights."""
        import torch

        original = _reasoner().model
        worse = copy.deepcopy(original)
        with torch.no_grad():
            for parameter in worse.parameters():
                parameter.add_(0.2 * parameter.std() * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
        first = self.card.compares[0]
        same, other = (self._figures(model)[first] for model in (original, worse))
        expect(same < other, f"{first} is {same} for the original and {other} for one with noise in its weights")

    def test_figures_are_those_of_the_card(self) -> None:
        """Finite numbers, with one line for each row."""
        import torch

        made: Comparison = self.make()
        rows = self._tokens(made)
        loaded = _reasoner()
        with torch.no_grad():
            figures, per_row = made.compare(loaded.model, loaded.model, loaded.tokenizer, rows, _ignore)
        expect(list(figures) == list(self.card.compares), f"it found {list(figures)}, not {list(self.card.compares)}")
        expect(all(abs(value) < float("inf") for value in figures.values()), f"not finite: {dict(figures)}")
        expect(len(per_row) == len(rows), f"{len(per_row)} lines for {len(rows)} rows")
        expect(all("tokens" in line for line in per_row), "a line does not say how many `tokens` counted")

    def test_reading_twice_gives_the_same_figures(self) -> None:
        """Also from a second object."""
        expect(self._figures(_reasoner().model) == self._figures(_reasoner().model), "two comparisons differ")

    def _figures(self, model: Any) -> dict[str, float]:
        import torch

        made: Comparison = self.make()
        with torch.no_grad():
            loaded = _reasoner()
            return dict(made.compare(model, loaded.model, loaded.tokenizer, self._tokens(made), _ignore)[0])

    def _tokens(self, made: Comparison) -> list[TokenRow]:
        from ..generation.prompts import encode_examples

        rows = list(itertools.islice(made.rows(), self.rows))
        expect(rows, "it has no rows")
        encoded = encode_examples(rows, _reasoner().tokenizer)
        return [TokenRow((*prompt.tokens, *after), len(prompt.tokens)) for prompt, after in encoded]


def _ignore(done: int) -> None:
    """For progress that nobody looks at."""
