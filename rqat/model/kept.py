"""Checkpoints of a run's steps, kept in memory while steps that only read them follow one another.

Every task of a recipe asks every model of it: each is loaded once, where there is room, and not once for every task.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from .memory import MARGIN, available_bytes

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint


class KeptCheckpoints:
    """Checkpoints by their folders. A process of its own for every step loads the very same: no result changes."""

    def __init__(self) -> None:
        self._held: dict[tuple[Path, str, torch.dtype], Checkpoint] = {}
        self._later: frozenset[Path] = frozenset()
        self._spare = 0

    def make_room(
        self, needed_bytes: int, device: str, *, now: Collection[Path] = (), later: Collection[Path] = ()
    ) -> None:
        """Lets go of what no step asks for any more, and of all unless a step that takes `needed_bytes` fits beside it.

        Args:
            now: folders of checkpoints that the step may read.
            later: those that steps behind it read, with nothing between them that changes a model.
        """
        self._later = frozenset(later)
        self._held = {key: found for key, found in self._held.items() if key[0] in self._later.union(now)}
        available = available_bytes(device)
        self._spare = -1 if available is None else int(available - MARGIN * needed_bytes)
        if self._spare < 0:
            self.release()

    def release(self) -> None:
        """Lets go of all."""
        self._held = {}

    def get(self, folder: Path, *, device: str, dtype: torch.dtype) -> Checkpoint:
        """The checkpoint in a folder, to be read only: others get the same.

        Raises:
            ModelError: see `load_checkpoint`.
        """
        from .checkpoint import load_checkpoint

        key = (folder, device, dtype)
        found = self._held.get(key)
        if found is None:
            found = load_checkpoint(folder, device=device, dtype=dtype)
            if folder in self._later and _bytes_of(found) <= self._spare:
                self._held[key] = found
        return found

    def beside_bytes(self, now: Collection[Path] = ()) -> int:
        """Of what is held, but for the folders `now`."""
        return sum(_bytes_of(found) for (folder, _, _), found in self._held.items() if folder not in now)


def _bytes_of(checkpoint: Checkpoint) -> int:
    """Weights, and the layers' codes, scales and zero points, which lie beside them on the host."""
    layers = (part for layer in checkpoint.layers.values() for part in layer.state().values())
    return sum(each.nbytes for each in (*checkpoint.model.parameters(), *layers))
