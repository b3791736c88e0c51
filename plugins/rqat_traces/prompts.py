"""Source `magpie`: prompts that the model before quantization thinks of itself.

A model that was trained on a chat template has seen as many questions as answers; given the template up to where a user
speaks, it goes on with a question (Magpie, arXiv 2406.08464, section 2.1). So calibration and training can follow what
a model was made for, without a data set; a system prompt says what about. `traces` answers them.

<step>/prompts.jsonl   a line per prompt: {"index", "prompt", "tokens", "dropped"}, whole batches at a time
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rqat

from . import MagpieOptions
from .lines import add, lines_of, whole_batches

FILE = "prompts.jsonl"

HINT = "Allow more (max_new_tokens), or look at what the model writes; one that was not trained to chat asks nothing."

log = logging.getLogger("rqat")


class Magpie(rqat.Source):
    """The prompts that are kept, in the order in which they were written: finished, not looping, and each once.

    What a prompt says decides which split it is of, so that no prompt is in two: eight of ten are to train on.
    """

    options: MagpieOptions

    def produce(self, folder: Path, loaded: rqat.LoadedModel, split: rqat.Split, seed: int) -> Mapping[str, Any]:
        """See `rqat.Source`. Every batch is sampled by its own place alone, so an interruption changes nothing.

        Raises:
            DataError: the tokenizer has no chat template; none of the prompts is kept.
        """
        o, path = self.options, folder / FILE
        there = whole_batches(path, o.n, o.batch, 1)
        seen = {_words(line["prompt"]) for line in lines_of(path)} if there else set[str]()
        systems = o.system or ("",)
        for start in range(there, o.n, o.batch):
            rows = [self._row(systems[index % len(systems)]) for index in range(start, min(start + o.batch, o.n))]
            written = loaded.complete(
                rows,
                turn="user",
                max_new_tokens=o.max_new_tokens,
                temperature=o.temperature,
                top_p=o.top_p,
                seed=_seed(split, seed) + start,
                batch=o.batch,
                total=o.n - there,
            )
            lines = []
            for index, [completion] in enumerate(written, start):
                prompt, words = completion.text.strip(), _words(completion.text)
                dropped = _fault(completion, words in seen, _split(words) == split)
                seen.add(words)
                line = {"index": index, "prompt": prompt, "tokens": len(completion.tokens), "dropped": dropped}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            add(path, lines)
        return _figures(lines_of(path))

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if self.folder is None:
            raise rqat.DataError("magpie: nothing has been written yet.", hint="Run the step that writes it first.")
        for number, line in enumerate(lines_of(self.folder / FILE), 1):
            if not line["dropped"]:
                yield {"prompt": line["prompt"], "place": f"{FILE}:{number}"}

    def _row(self, system: str) -> rqat.Row:
        row: rqat.Row = {"system": system} if system else {}
        return {**row, "template": self.options.chat_template_kwargs} if self.options.chat_template_kwargs else row


def _seed(split: rqat.Split, seed: int) -> int:
    """Of a split's first batch; those of the others are far away."""
    return (seed * 3 + ("train", "validation", "test").index(split)) * 1_000_003


def _words(text: str) -> str:
    """What makes two prompts the same: their words, however they are set."""
    return " ".join(text.split()).casefold()


def _split(words: str) -> rqat.Split:
    tenth = hashlib.sha256(words.encode()).digest()[0] * 10 // 256
    return "validation" if tenth == 8 else "test" if tenth == 9 else "train"


def _fault(completion: rqat.Completion, repeated: bool, of_split: bool) -> str:
    """Why a prompt is not kept; empty if it is."""
    if not completion.text.strip():
        return "empty"
    if completion.looping:
        return "looping"
    if not completion.ended:
        return "unfinished"
    if repeated:
        return "repeated"
    return "" if of_split else "of another split"


def _figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What is told of all prompts, those that were dropped included.

    Raises:
        DataError: none was kept.
    """
    dropped = Counter(line["dropped"] for line in lines)
    kept = dropped.pop("", 0)
    why = dict(sorted(dropped.items()))
    shown = ", ".join(f"{count} {reason}" for reason, count in why.items())
    if not kept:
        raise rqat.DataError(f"magpie: none of {len(lines)} prompts is kept: {shown}.", hint=HINT)
    if why:
        log.warning("magpie: %d of %d prompts are left out: %s.", len(lines) - kept, len(lines), shown)
    tokens = sum(line["tokens"] for line in lines if not line["dropped"])
    return {"written": len(lines), "kept": kept, "dropped": why, "tokens": tokens}
