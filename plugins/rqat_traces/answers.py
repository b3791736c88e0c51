"""Source `traces`: what the model before quantization answers to the prompts of another source.

<step>/traces.jsonl    a line per completion: {"index", "sample", "row", "completion", "tokens", "dropped", "verdict"},
                       whole batches at a time; those with a reason under "dropped" are counted, and not read
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import rqat

from . import TracesOptions
from .lines import add, lines_of, whole_batches

FILE = "traces.jsonl"

LOOKED_AT = 2000
"""Prompts that are read before a run to see whether they can be asked."""

HINT = "Allow more (max_new_tokens), ask for less (keep), or look at what the model writes."

REASONS = {"not-looping": "looping", "finished": "unfinished", "correct": "not correct"}
"""What a completion is that fails a condition, in the order in which they are looked at."""

EMPTY = "empty"
"""What one is that ended at once, which is never kept."""

log = logging.getLogger("rqat")


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
        there = whole_batches(path, len(asked), together, o.n)
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
            add(path, lines)
        return self._figures(path, len(asked))

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if self.folder is None:
            raise rqat.DataError("traces: nothing has been written yet.", hint="Run the step that writes them first.")
        kept = [(number, line) for number, line in enumerate(lines_of(self.folder / FILE), 1) if not line["dropped"]]
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
        failed = [] if completion.text.strip() else [EMPTY]  # there is nothing to imitate
        failed += [reason for name, reason in REASONS.items() if name in self.options.keep and not holds[name]]
        line = {
            "index": index,
            "sample": sample,
            "row": {name: value for name, value in row.items() if name != "place"},
            "completion": completion.text,
            "tokens": len(completion.tokens),
            "dropped": failed[0] if failed else "",
            "verdict": verdict,
        }
        return json.dumps(line, ensure_ascii=False, default=str) + "\n"  # a row may hold what a source alone knows

    def _figures(self, path: Path, prompts: int) -> dict[str, Any]:
        """What is told of all completions, those that were dropped included.

        Raises:
            DataError: none was kept.
        """
        lines = lines_of(path)
        dropped = Counter(line["dropped"] for line in lines)
        kept = dropped.pop("", 0)
        why = {reason: dropped[reason] for reason in (EMPTY, *REASONS.values()) if dropped[reason]}
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
