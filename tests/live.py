"""Bytes of the tensors that are alive, as a device would count them: what estimates of memory are held to."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts what operations return while it is entered; what they take for themselves is not seen.

    Attributes:
        peak: the most bytes so far.
    """

    def __init__(self, *there: torch.Tensor) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._storages: dict[int, list[int]] = {}
        """By storage: its bytes, and how many tensors show it."""
        for tensor in there:
            self._note(tensor)

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            known = self._storages[storage._cdata] = [storage.nbytes(), 0]
            self._now += known[0]
            self.peak = max(self.peak, self._now)
        known[1] += 1
        weakref.finalize(tensor, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        known = self._storages[key]
        known[1] -= 1
        if not known[1]:
            self._now -= self._storages.pop(key)[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return out
