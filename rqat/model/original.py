"""The model before quantization, kept in memory between the steps of a run: several read it, and none changes it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from ..keys import ModelKeys
from .memory import MARGIN, available_bytes

if TYPE_CHECKING:
    import transformers

    Loaded = tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]


class Original:
    """At most one model with its tokenizer, on one device, in eval mode and without gradients.

    A process of its own for every step loads the very same: what is kept changes no result.
    """

    def __init__(self) -> None:
        self._key: tuple[ModelKeys, str, bool] | None = None
        self._held: Loaded | None = None
        self._spare = 0
        self._counted = False

    def make_room(self, needed_bytes: int, device: str) -> None:
        """Lets go of what is held unless a step that takes `needed_bytes` on `device` fits beside it."""
        self._counted = False
        available = available_bytes(device)
        self._spare = -1 if available is None else int(available - MARGIN * needed_bytes)
        if self._spare < 0:
            self.release()

    @property
    def uncounted_bytes(self) -> int:
        """Of what is held, unless the estimate of the step that runs counts it."""
        return 0 if self._counted else self.held_bytes

    @property
    def held_bytes(self) -> int:
        """Of what is held."""
        return _bytes_of(self._held[0]) if self._held else 0

    def release(self) -> None:
        """Lets go of what is held."""
        self._key = self._held = None

    def get(self, keys: ModelKeys, *, device: str, offline: bool = False, counted: bool = True) -> Loaded:
        """The model, to be read only: others get the same.

        Args:
            counted: in the estimate of the step that runs; else it is kept only if there is room for both.

        Raises:
            RqatError: see `load_model`. One that is quantized already is loaded, too.
        """
        from .load import load_model

        key = (keys, device, offline)
        if self._held is None or self._key != key:
            self.release()
            model, tokenizer = load_model(keys, device=device, offline=offline, quantizable=False)
            found = (model.requires_grad_(False), tokenizer)
            if not counted and _bytes_of(model) > self._spare:
                return found
            self._key, self._held = key, found
        self._counted |= counted
        return self._held

    def copied(self, keys: ModelKeys, *, device: str, offline: bool = False) -> Loaded:
        """The model, to be changed; what it is a copy of is kept if there is room for both.

        Raises:
            RqatError: see `load_model`; also for a model that cannot be quantized.
        """
        from .load import load_model

        held = self._held if self._key == (keys, device, offline) else None
        if held is None:
            model, tokenizer = load_model(keys, device=device, offline=offline)
            if _bytes_of(model) > self._spare:
                return model, tokenizer
            held = (model.requires_grad_(False), tokenizer)
            self._key, self._held = (keys, device, offline), held
        return copy.deepcopy(held[0]).requires_grad_(True), held[1]


def _bytes_of(model: transformers.PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
