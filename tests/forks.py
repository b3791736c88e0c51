"""Processes that do one thing together as forks of the test: nothing is imported or loaded again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from rqat.processes import Processes

TIMEOUT_S = 60


@dataclass(frozen=True)
class Fork(Processes):
    """One of them.

    Attributes:
        met: waits for all.
        folder: where each says what it has to say.
    """

    met: Barrier | None = None
    folder: Path = Path()

    def gather(self, text: str = "") -> list[str]:
        """See `Processes`."""
        assert self.met is not None
        self.met.wait(TIMEOUT_S)  # all have read what was said before
        (self.folder / f"said-{self.rank}").write_text(text)
        self.met.wait(TIMEOUT_S)
        return [(self.folder / f"said-{rank}").read_text() for rank in range(self.count)]


def together(count: int, folder: Path, work: Callable[[Processes], None]) -> list[int | None]:
    """Does `work` in so many processes; when one fails all end, as torch's launcher has it. Their exit codes."""
    context = multiprocessing.get_context("fork")
    met = context.Barrier(count)
    forks = [context.Process(target=_work, args=[work, Fork(rank, count, met, folder)]) for rank in range(count)]
    for fork in forks:
        fork.start()
    deadline = time.monotonic() + TIMEOUT_S
    while any(fork.is_alive() for fork in forks):
        if any(fork.exitcode for fork in forks) or time.monotonic() > deadline:
            for fork in forks:
                fork.kill()
        time.sleep(0.005)
    for fork in forks:
        fork.join()
    return [fork.exitcode for fork in forks]


def _work(work: Callable[[Processes], None], processes: Processes) -> None:
    torch.set_num_threads(1)  # a fork has none of the threads that torch thinks it has
    work(processes)
