"""How the batch of an optimizer step is split: over processes, and in each over forward passes."""

from __future__ import annotations

from collections.abc import Callable

from .errors import RqatError


class UnevenBatch(RqatError):
    """A batch that does not split.

    Attributes:
        key: what to change: "batch" or "micro_batch".
    """

    def __init__(self, message: str, *, hint: str, key: str) -> None:
        super().__init__(message, hint=hint)
        self.key = key


def sequences_at_once(batch: int, micro_batch: int | None, processes: int = 1) -> int:
    """Sequences per forward pass of a process: `micro_batch`, or else its whole share of the batch."""
    return micro_batch or max(1, batch // processes)


def largest_that_fits(batch: int, processes: int, takes: Callable[[int], float], free_bytes: float | None) -> int:
    """The most sequences at once, of those that split a batch evenly over processes, that free memory has room for.

    Args:
        takes: memory for so many sequences at once, in bytes.
        free_bytes: None where nobody knows: one sequence.
    """
    share = max(1, batch // processes)
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    return next((size for size in sizes if free_bytes is not None and takes(size) <= free_bytes), 1)


def split_batch(batch: int, micro_batch: int | None, processes: int = 1) -> tuple[int, int]:
    """Sequences per forward pass, and forward passes per optimizer step, of every process.

    Raises:
        UnevenBatch: they do not make up `batch`.
    """
    micro = sequences_at_once(batch, micro_batch, processes)
    if micro_batch and batch % micro_batch:
        fits = ", ".join(str(count) for count in range(1, batch + 1) if batch % count == 0)
        text = f"a batch of {batch} does not split into micro-batches of {micro_batch}."
        raise UnevenBatch(text, hint=f"Use one of {fits}.", key="micro_batch")
    if batch % (micro * processes):
        shares = f"{processes} processes" + (f" with micro_batch {micro_batch}" if micro_batch else "")
        text = f"a batch of {batch} does not split over {shares}."
        raise UnevenBatch(text, hint=f"Use a multiple of {(micro_batch or 1) * processes}.", key="batch")
    return micro, batch // (micro * processes)
