"""Source `traces`: what the model before quantization answers to the prompts of another source.

A quantized model stays closer to itself on text of its own than on text of others, and so do calibration and training
on traces: they see the lengths, the wording and the mistakes that the model will meet when it reasons. The answers are
written once, in a step of their own, and read by every step that names the source with the same options.

<step>/traces.jsonl    a line per completion: {"index", "sample", "row", "completion", "tokens", "dropped", "verdict"},
                       whole batches at a time; those with a reason under "dropped" are counted, and not read
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

import rqat

FILE = "traces.jsonl"

LOOKED_AT = 2000
"""Prompts that are read before a run to see whether they can be asked."""

HINT = "Allow more (max_new_tokens), ask for less (keep), or look at what the model writes."

log = logging.getLogger("rqat")

Condition = Literal["finished", "not-looping", "correct"]

REASONS = {"not-looping": "looping", "finished": "unfinished", "correct": "not correct"}
"""What a completion is that fails a condition, in the order in which they are looked at."""


def _one_part(value: Any) -> Any:
    """A source's name, or its mapping, as a list of one."""
    return [{"source": value}] if isinstance(value, str) else [value] if isinstance(value, Mapping) else value


class TracesOptions(rqat.Options):
    """Options of `traces`.

    Attributes:
        prompts: the source of the prompts: its name, its mapping, or a list of one.
        limit: how many of its prompts are asked, the first ones. None is all.
        n: completions of each prompt.
        temperature: of sampling; 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`.
        max_new_tokens: tokens after which a completion is cut off.
        system: a system prompt before every prompt; it takes a chat template.
        chat_template_kwargs: settings of the chat template, such as `{enable_thinking: false}`.
        keep: which completions are kept: those for which all of this holds. `finished`: it ended by itself;
            `not-looping`: it does not end in one piece said again and again; `correct`: the grader of `task` says so.
        task: whose grader judges, with the defaults of its options; named without `correct` under `keep`, it only
            counts.
        batch: completions written together, and lost when the run is interrupted. rqat's engine fills rows that end
            with prompts that wait: on a GPU a thousand are written faster than ten times a hundred.
    """

    prompts: Annotated[list[rqat.Part], BeforeValidator(_one_part), Field(min_length=1, max_length=1)]
    limit: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=2048, ge=1)
    system: str = ""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    keep: Annotated[
        tuple[Condition, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
    ] = ("finished", "not-looping")
    task: rqat.Grader | None = None
    batch: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TracesOptions:
        if "correct" in self.keep and self.task is None:
            raise ValueError("keep: 'correct' needs a grader; name one with `task`, e.g. task: gsm8k.")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} greedy completions of a prompt are all alike; set a temperature.")
        return self

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """See `rqat.Options`."""
        room = context.model.context if context.model else None
        if room is not None and self.max_new_tokens >= room:
            text = f"{self.max_new_tokens}, but the model's context is {room}."
            yield rqat.Problem(text, "Completions end where the context does.", "max_new_tokens", "warning")


class Traces(rqat.Source):
    """The completions that are kept, behind their prompts: first samples of all prompts before second ones."""

    options: TracesOptions

    def combine(self, parts: Sequence[rqat.Source]) -> None:
        """See `rqat.Source`."""
        [self._prompts] = parts

    def read_ahead(self, split: rqat.Split, seed: int) -> Iterator[rqat.Problem]:
        """See `rqat.Source`."""
        for number, row in enumerate(islice(self._asked(split, seed), LOOKED_AT), 1):
            where = row.get("place") or f"row {number} of '{self.options.prompts[0].source}'"
            if not (row.get("prompt") or row.get("messages")):
                yield rqat.Problem(f"{where} has no prompt to answer.", "Use a source whose rows have one.", "prompts")
                return
            if self.options.task is not None and not row.get("answer"):
                text = f"{where} has no answer, by which the grader of '{self.options.task}' could judge."
                yield rqat.Problem(text, "Use a source whose rows have one, or leave out `task`.", "prompts")
                return

    def produce(self, folder: Path, loaded: rqat.LoadedModel, split: rqat.Split, seed: int) -> Mapping[str, Any]:
        """See `rqat.Source`. Every batch is sampled by its own place alone, so an interruption changes nothing."""
        o, path = self.options, folder / FILE
        asked = list(self._asked(split, seed))
        together = max(1, o.batch // o.n)
        there = _whole_batches(path, len(asked), together, o.n)
        for start in range(there, len(asked), together):
            rows = asked[start : start + together]
            written = loaded.complete(
                rows,
                o.n,
                max_new_tokens=o.max_new_tokens,
                temperature=o.temperature,
                top_p=o.top_p,
                seed=seed + start,
                batch=o.batch,
                total=(len(asked) - there) * o.n,
            )
            lines = [
                self._line(start + place, sample, row, completion, loaded)
                for place, (row, completions) in enumerate(zip(rows, written, strict=True))
                for sample, completion in enumerate(completions)
            ]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        return self._figures(path, len(asked))

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if self.folder is None:
            raise rqat.DataError("traces: nothing has been written yet.", hint="Run the step that writes them first.")
        kept = [(number, line) for number, line in enumerate(_lines(self.folder / FILE), 1) if not line["dropped"]]
        for number, line in sorted(kept, key=lambda each: (each[1]["sample"], each[1]["index"])):
            yield trace(line["row"], line["completion"]) | {"place": f"{FILE}:{number}"}  # type: ignore[misc]

    def _asked(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        more: rqat.Row = {"system": self.options.system} if self.options.system else {}
        for row in islice(self._prompts.rows(split, seed), self.options.limit):
            template = {**row.get("template", {}), **self.options.chat_template_kwargs}
            yield {**row, **more, "template": template} if template else {**row, **more}

    def _line(
        self, index: int, sample: int, row: rqat.Row, completion: rqat.Completion, loaded: rqat.LoadedModel
    ) -> str:
        """One line of the file, its end included."""
        task = self.options.task
        verdict = loaded.grade(task, completion.to_grade, row) if task is not None else None
        holds = {"finished": completion.ended, "not-looping": not completion.looping, "correct": verdict == "correct"}
        failed = [reason for name, reason in REASONS.items() if name in self.options.keep and not holds[name]]
        line = {
            "index": index,
            "sample": sample,
            "row": {name: value for name, value in row.items() if name != "place"},
            "completion": completion.text,
            "tokens": len(completion.tokens),
            "dropped": failed[0] if failed else "",
            "verdict": verdict,
        }
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _figures(self, path: Path, prompts: int) -> dict[str, Any]:
        """What is told of all completions, those that were dropped included.

        Raises:
            DataError: none was kept.
        """
        lines = _lines(path)
        dropped = Counter(line["dropped"] for line in lines)
        kept = dropped.pop("", 0)
        why = {reason: dropped[reason] for reason in REASONS.values() if dropped[reason]}
        if not kept:
            shown = ", ".join(f"{count} {reason}" for reason, count in why.items()) or "there are no prompts"
            raise rqat.DataError(f"traces: none of {len(lines)} completions is kept: {shown}.", hint=HINT)
        if why:
            shown = ", ".join(f"{count} {reason}" for reason, count in why.items())
            log.warning("traces: %d of %d completions are left out: %s.", len(lines) - kept, len(lines), shown)
        verdicts = Counter(line["verdict"] for line in lines if line["verdict"] is not None)
        return {
            "prompts": prompts,
            "completions": len(lines),
            "kept": kept,
            "dropped": why,
            "answered": len({line["index"] for line in lines if not line["dropped"]}),
            "tokens": sum(line["tokens"] for line in lines if not line["dropped"]),
            **({"verdicts": dict(sorted(verdicts.items()))} if verdicts else {}),
        }


def trace(row: Mapping[str, Any], completion: str) -> dict[str, Any]:
    """A row with what the model wrote in place of what stood there."""
    if "messages" in row:
        turns = list(row["messages"])
        if turns and turns[-1]["role"] == "assistant":
            del turns[-1]
        return {**row, "messages": [*turns, {"role": "assistant", "content": completion}]}
    return {**row, "completion": completion}


def _whole_batches(path: Path, prompts: int, together: int, n: int) -> int:
    """Cuts a file off behind its last whole batch; how many prompts those have answered."""
    if not path.is_file():
        return 0
    there = len(_lines(path)) // n
    whole = there if there == prompts else there // together * together
    kept = b"".join(islice(path.read_bytes().splitlines(keepends=True), whole * n))
    if len(kept) < path.stat().st_size:
        path.write_bytes(kept)
    return whole


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file up to the first that was cut off."""
    found = []
    for text in _ended(path.read_bytes().splitlines(keepends=True)):
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def _ended(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in lines if line.endswith(b"\n"))


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    """The card of `traces`."""
    register(
        "traces",
        options=TracesOptions,
        load=":Traces",
        model=True,
        summary="answers of the model before quantization to another source's prompts",
    )
