"""Finished batches of an evaluation on disk: it goes on from them, and several processes hand them to the first.

    samples.jsonl        of the first process, or of one alone: a batch to a line, which is whole or does not count
    samples-<k>.jsonl    of the k-th of several; an evaluation that resumes reads all files, however many it has now
    samples-<k>.told     how far the k-th is with what it is writing

What a batch becomes depends on the batch and its seed alone, and with a writer that draws for every prompt by itself
(`Writer.at_once`), so does what any part of it becomes. So it does not matter which process writes it, nor how many
there are.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ..contracts import Completion, Verdict
from ..errors import RunError
from ..generation.complete import Batch
from ..processes import Processes

Unit = tuple[int, Batch]
"""What is written at a time: a batch, with the seed of its sampling."""


class Finished(NamedTuple):
    """A batch, or a part of one, that was written and graded.

    Attributes:
        seed: of its sampling.
        indices: which of all problems.
        completions, verdicts: of each of those.
    """

    seed: int
    indices: tuple[int, ...]
    completions: Sequence[Completion]
    verdicts: Sequence[Verdict]


@dataclass
class _File:
    """The batches of one process.

    Attributes:
        read: bytes up to which all lines are known.
        seconds: that those batches took.
    """

    path: Path
    read: int = 0
    seconds: float = 0.0

    def news(self, backend: str) -> Iterator[Finished]:
        """Batches of whole lines that were added since it was read; ends at a line that is of no use."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            for line in file:
                found = _parsed(line, backend)
                if found is None:
                    return
                self.read += len(line)
                self.seconds += found[1]
                yield found[0]

    def add(self, entry: dict[str, Any]) -> None:
        """Adds a line, on disk when this returns."""
        line = (json.dumps(entry) + "\n").encode()
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.read += len(line)
        self.seconds += entry["seconds"]

    def mend(self) -> None:
        """Cuts off what is not known: what an interruption cut in half must not swallow the line that comes next."""
        with suppress(FileNotFoundError), self.path.open("rb+") as file:
            file.truncate(self.read)


class Saved:
    """Finished batches of one backend.

    Args:
        path: of the first process's file; None keeps nothing, and is for one process alone.
        backend: who writes; batches of another are not taken.
        processes: those that write together.
    """

    def __init__(self, path: Path | None, backend: str, processes: Processes | None = None) -> None:
        self._processes, self._backend = processes or Processes(), backend
        assert path is not None or self._processes.count == 1, "processes hand each other their batches as files"
        self._path = path
        self._own = None if path is None else _File(self._part(self._processes.rank))
        self._others: list[_File] = []
        self._said: dict[int, tuple[int, float]] = {}

    @property
    def leads(self) -> bool:
        """Whether this process puts together what all have written."""
        return self._processes.leads

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self._processes.count > 1

    @property
    def seconds(self) -> float:
        """Time that writing took: that of the process that wrote for the longest, since they write at the same time."""
        return max((file.seconds for file in (self._own, *self._others) if file is not None), default=0.0)

    def begin(self, units: Sequence[Unit], asked: str, *, divide: bool = False) -> tuple[list[Finished], list[Unit]]:
        """Reads what is there, and shares out what is not; to be called by all processes.

        Args:
            units: all there is to write.
            asked: a digest of the prompts.
            divide: share out every prompt by itself; else whole batches.

        Returns:
            the batches that are finished, in the first process; those that this process is to write.

        Raises:
            RunError: processes differ in what they are asked, or in who writes.
        """
        there, missing = self._left(units) if self.leads else ([], [])
        mine = json.dumps({"backend": self._backend, "asked": asked, "missing": missing})
        # Nobody writes before all have come here, so that nothing is read while it changes.
        said = [json.loads(text) for text in self._processes.gather(mine)]
        _agree(said)
        rank, count = self._processes.rank, self._processes.count
        if not divide:
            return there, [units[number] for number, _ in said[0]["missing"][rank::count]]
        each = [(number, index) for number, indices in said[0]["missing"] for index in indices][rank::count]
        share = [(units[number], [index for _, index in some]) for number, some in groupby(each, lambda one: one[0])]
        return there, [(seed, batch.part(indices)) for (seed, batch), indices in share]

    def add(self, finished: Finished, seconds: float) -> None:
        """Puts a batch of this process on disk, if there is a file."""
        if self._own is None:
            return
        rows = [asdict(completion) for completion in finished.completions]
        self._own.add({"backend": self._backend, **finished._asdict(), "completions": rows, "seconds": seconds})

    def news(self) -> Iterator[Finished]:
        """What other processes have finished since this was asked; for the first process."""
        for file in self._others:
            yield from file.news(self._backend)

    def tell(self, done: int, tokens_per_s: float) -> None:
        """Says how many completions this process has written now, and how fast; for all but the first."""
        if self._path is not None:
            self._told(self._processes.rank).write_text(json.dumps([done, tokens_per_s]))

    def told(self) -> tuple[int, float]:
        """What the others have said, in sum: completions, and tokens per second."""
        for rank in range(1, self._processes.count):
            with suppress(FileNotFoundError, ValueError):  # not there yet, or just being written
                done, speed = json.loads(self._told(rank).read_text())
                self._said[rank] = done, speed
        return sum(done for done, _ in self._said.values()), sum(speed for _, speed in self._said.values())

    def _left(self, units: Sequence[Unit]) -> tuple[list[Finished], list[tuple[int, list[int]]]]:
        """What is finished of some batches, and what is missing of each that is not: its number, and which prompts."""
        known = {(seed, index) for seed, batch in units for index in batch.indices}
        there = [one for one in self._read() if {(one.seed, index) for index in one.indices} <= known]
        done = {(one.seed, index) for one in there for index in one.indices}
        left = (
            (number, [index for index in batch.indices if (seed, index) not in done])
            for number, (seed, batch) in enumerate(units)
        )
        return there, [(number, indices) for number, indices in left if indices]

    def _read(self) -> list[Finished]:
        """Batches in the files of all processes, of the last attempt too; what is damaged is cut off."""
        if self._path is None or self._own is None:
            return []
        before = self._path.parent.glob(f"{glob.escape(self._path.stem)}-*{self._path.suffix}")
        paths = {*before, *map(self._part, range(1, self._processes.count))}
        self._others = [_File(path) for path in sorted(paths)]
        found: list[Finished] = []
        for file in (self._own, *self._others):
            found += file.news(self._backend)
            file.mend()
        for old in self._path.parent.glob(f"{glob.escape(self._path.stem)}-*.told"):
            old.unlink()
        return found

    def _part(self, rank: int) -> Path:
        assert self._path is not None
        return self._path.with_stem(f"{self._path.stem}-{rank}") if rank else self._path

    def _told(self, rank: int) -> Path:
        return self._part(rank).with_suffix(".told")


def _parsed(line: bytes, backend: str) -> tuple[Finished, float] | None:
    """A batch and the seconds it took; None where a line is not whole, or another's."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else {}
        if entry["backend"] != backend:
            return None
        rows = [Completion(**{**row, "tokens": tuple(row["tokens"])}) for row in entry["completions"]]
        finished = Finished(entry["seed"], tuple(entry["indices"]), rows, entry["verdicts"])
        seconds = float(entry["seconds"])
    except (ValueError, TypeError, KeyError):
        return None
    return (finished, seconds) if len(finished.indices) == len(rows) == len(finished.verdicts) else None


def _agree(said: Sequence[dict[str, Any]]) -> None:
    """Whether all processes do the same work.

    Raises:
        RunError: they do not.
    """
    first = said[0]
    for rank, other in enumerate(said):
        if other["asked"] != first["asked"]:
            raise RunError(
                f"process {rank} of {len(said)} has other prompts than the first.",
                hint="A task gives the same problems whenever it is asked; or evaluate in one process.",
            )
        if other["backend"] != first["backend"]:
            raise RunError(
                f"in process {rank} of {len(said)} '{other['backend']}' writes, in the first '{first['backend']}'.",
                hint="Their memory may differ; `backend: transformers` writes alike in all.",
            )
