"""The source `magpie`: what it keeps, that an interruption changes nothing, and that a run trains on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rqat import Completion, DataError, LoadedModel, Row
from rqat.cards import Card
from rqat.registry import Registry
from rqat.storage import read_json, read_json_lines
from rqat.testing import SourceSuite
from tests.rqat.cli.test_commands import rqat


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def card(registry: Registry) -> Card:
    return registry.card("source", "magpie")


def source(registry: Registry, card: Card, **options: Any) -> Any:
    return registry.make(card, registry.options(card, options))


class Writer:
    """Asks by a rule, unless `spoil` makes something else of it; keeps what it was asked for."""

    def __init__(self, spoil: Any = lambda number, completion: completion) -> None:
        self.rows: list[Row] = []
        self.seeds: list[int] = []
        self._spoil = spoil

    def loaded(self) -> LoadedModel:
        return LoadedModel(None, None, self.complete, None)  # type: ignore[arg-type]

    def complete(self, rows: Sequence[Row], *, turn: str, seed: int, **settings: Any) -> list[list[Completion]]:
        assert turn == "user"
        self.rows += rows
        self.seeds.append(seed)
        asked = [f"What is {seed} plus {place}?" for place in range(len(rows))]
        start = len(self.rows) - len(rows)
        return [[self._spoil(start + i, Completion(text, (1, 2), True, 96))] for i, text in enumerate(asked)]


def test_what_is_kept_and_what_is_told(
    registry: Registry, card: Card, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoiled = {
        0: Completion("Why?  Because", (1,), True, 96),
        1: Completion("why? because\n", (1,), True, 96),
        2: Completion(" \n", (1,), True, 96),
        3: Completion("and and and", (1,), False, 96, looping=True),
        4: Completion("How does one", (1,), False, 96),
    }
    made = source(registry, card, n=40, batch=7)
    told = made.produce(tmp_path, Writer(lambda number, c: spoiled.get(number, c)).loaded(), "train", 0)
    elsewhere = told["dropped"].pop("of another split")
    assert told["dropped"] == {"empty": 1, "looping": 1, "repeated": 1, "unfinished": 1}
    assert 2 < elsewhere < 18
    assert told["written"] == 40 == told["kept"] + elsewhere + 4
    assert f"{4 + elsewhere} of 40 prompts are left out: 1 empty, 1 looping, " in caplog.text
    made.folder = tmp_path
    rows = list(made.rows("train", 0))
    assert len(rows) == told["kept"]
    assert rows[0] == {"prompt": "Why?  Because", "place": "prompts.jsonl:1"}


def test_no_prompt_is_in_two_splits_and_none_is_lost(registry: Registry, card: Card, tmp_path: Path) -> None:
    kept = []
    for split in ("train", "validation", "test"):
        made = source(registry, card, n=60, batch=60)
        folder = tmp_path / split
        folder.mkdir()
        fixed = Writer(lambda number, c: Completion(f"Question {number}?", (1,), True, 96))
        made.produce(folder, fixed.loaded(), split, 0)
        made.folder = folder
        kept.append({row["prompt"] for row in made.rows(split, 0)})
    train, validation, test = kept
    assert train | validation | test == {f"Question {number}?" for number in range(60)}
    assert sum(map(len, kept)) == 60
    assert len(train) > 2 * max(len(validation), len(test)) > 0


def test_system_prompts_take_turns(registry: Registry, card: Card, tmp_path: Path) -> None:
    writer = Writer()
    options = {"n": 5, "batch": 2, "system": ["Maths.", "Code."], "chat_template_kwargs": {"enable_thinking": False}}
    source(registry, card, **options).produce(tmp_path, writer.loaded(), "train", 0)
    assert [row["system"] for row in writer.rows] == ["Maths.", "Code.", "Maths.", "Code.", "Maths."]
    assert all(row["template"] == {"enable_thinking": False} for row in writer.rows)
    assert len(set(writer.seeds)) == 3


def test_nothing_kept_is_an_error_that_says_why(registry: Registry, card: Card, tmp_path: Path) -> None:
    cut = Writer(lambda number, c: Completion(c.text, c.tokens, False, 96))
    with pytest.raises(DataError, match=r"none of 4 prompts is kept: 4 unfinished\. Allow more"):
        source(registry, card, n=4).produce(tmp_path, cut.loaded(), "train", 0)


@pytest.mark.parametrize("share", [0, 0.3, 0.69, 0.99])
def test_a_file_that_was_cut_off_anywhere_is_completed_to_the_same_bytes(
    registry: Registry, card: Card, tmp_path: Path, share: float
) -> None:
    def same(number: int, completion: Completion) -> Completion:  # the 2nd batch repeats what the 1st has asked
        return Completion("The same?", (1,), True, 96) if completion.text.endswith("plus 1?") else completion

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    made = source(registry, card, n=11, batch=3)
    told = made.produce(whole, Writer(same).loaded(), "train", 3)
    assert told["dropped"]["repeated"] == 3
    data = (whole / "prompts.jsonl").read_bytes()
    (cut / "prompts.jsonl").write_bytes(data[: int(len(data) * share)])
    assert made.produce(cut, Writer(same).loaded(), "train", 3) == told
    assert (cut / "prompts.jsonl").read_bytes() == data


# ---------------------------------------------------------------------------------------------- with a real model


@pytest.mark.slow
def test_conformance(registry: Registry) -> None:
    class Magpie(SourceSuite):
        name = "magpie"
        options: ClassVar = {"n": 12, "max_new_tokens": 24}

    Magpie.registry = registry
    suite = Magpie()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()


@pytest.mark.slow
def test_a_run_answers_them_and_trains_on_them(tmp_path: Path) -> None:
    import yaml

    rows = {"source": "traces", "prompts": {"source": "magpie", "n": 40, "max_new_tokens": 40}, "temperature": 0.8}
    recipe = {
        "name": "own",
        "model": "builtin:tiny-reasoner",
        "quantize": "rtn",
        "train": [
            {"objective": "kd", "data": rows | {"max_new_tokens": 64}, "steps": 1, "batch": 2, "max_tokens": 256}
        ],
        "export": None,
    }
    path, run = tmp_path / "own.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    result = rqat("qat", path, "-o", run)
    assert result.exit_code == 0, result.stderr
    [asked], [answered] = run.glob("*-produce-magpie"), run.glob("*-produce-traces")
    told = read_json(asked / "manifest.json")["results"]
    answers = read_json_lines(answered / "traces.jsonl")
    assert told["written"] == 40
    assert len(answers) == told["kept"]
    assert list(run.glob("*-train-kd/training.jsonl"))
