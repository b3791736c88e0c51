"""A model larger than the memory: its weights are read part by part, where they are needed, and let go of again.

A part is a decoder block, the embedding, or the head. What lies outside of them, norms and buffers, is always there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rqat_kernels.dispatch import one_thread

from .families import layout_of
from .stored import StoredTensors
from .tensor_file import Lying

if TYPE_CHECKING:
    import transformers


class Streamed:
    """A model and the files that its weights are read from.

    Args:
        model: in eval mode. Parameters on the meta device are read when their part is entered; others stay.
        stored: the files; None where every parameter is there.
        device: where the model computes; None: where its parameters are.

    Attributes:
        model: the same; a part that has not been entered has weights without values.
        device: where parts are put.
        whole: whether nothing is ever read or let go of.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        stored: StoredTensors | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = model
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.whole = stored is None
        self._stored = stored
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        self._empty: dict[str, nn.Parameter] = {}
        self._entered: dict[str, list[str]] = {}
        first: dict[int, str] = {}
        self._own: dict[str, str] = {}
        """By a parameter's full name, the name it has in the file: of a tied pair, both have one."""
        for name, parameter in model.named_parameters(remove_duplicate=False):
            own = self._own[name] = first.setdefault(id(parameter), name)
            inside, _, last = name.rpartition(".")
            self._places.setdefault(own, []).append((model.get_submodule(inside), last))
            self._empty[own] = parameter
        if not self.whole:
            layout = layout_of(model.config)
            parts = (f"{layout.blocks}.", f"{layout.embeddings}.", f"{layout.head}.")
            for name in [name for name in self._own if not name.startswith(parts)]:
                self._put(self._own[name], self.read(name))
            for module in model.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(self.device))

    def read(self, name: str) -> Tensor:
        """A parameter as it is in the files, in the dtype the model computes in, on the CPU."""
        assert self._stored is not None
        return self._stored.read(self._own[name]).to(self._empty[self._own[name]].dtype)

    def unchanged(self, name: str) -> Tensor | Lying:
        """A parameter that nobody has changed, on the CPU; as it lies in the files where the model only widens it."""
        own = self._own[name]
        here = self._at(own)
        if not here.is_meta:
            return here.detach().cpu()
        assert self._stored is not None
        lying = self._stored.tensors[own]
        widened = lying.dtype == torch.bfloat16 and here.dtype in (torch.bfloat16, torch.float32)
        return lying if widened else self.read(name)

    def has(self, part: str) -> bool:
        """Whether a part's weights are there.

        Args:
            part: full name of a module.
        """
        return not self._absent(part)

    def enter(self, part: str, *, read: bool = True) -> bool:
        """Puts the weights of a part in place; whether it was not there before.

        Args:
            read: from the files; else whoever calls overwrites all of them.
        """
        absent = self._absent(part)
        if not absent:
            return False
        with torch.inference_mode(False), torch.no_grad(), one_thread():
            for own in absent:
                self._put(own, self.read(own) if read else torch.empty_like(self._empty[own], device="cpu"))
        self._entered[part] = absent
        return True

    def leave(self, part: str) -> None:
        """Lets go of a part's weights, changed or not; nothing where it was there from the beginning."""
        for own in self._entered.pop(part, []):
            for module, last in self._places[own]:
                setattr(module, last, self._empty[own])

    @contextmanager
    def present(self, part: str) -> Iterator[None]:
        """A part as it is while it is there, else as it lies in the files; afterwards it is where it was."""
        entered = self.enter(part)
        try:
            yield
        finally:
            if entered:
                self.leave(part)

    def leave_all(self) -> None:
        """Lets go of every part."""
        for part in [*self._entered]:
            self.leave(part)

    def _absent(self, part: str) -> list[str]:
        """The parameters of a part that are not there."""
        if self.whole:
            return []
        names = {own for name, own in self._own.items() if name.startswith(f"{part}.")}
        return [own for own in sorted(names) if self._at(own).is_meta]

    def _at(self, own: str) -> Tensor:
        module, last = self._places[own][0]
        found: Tensor = getattr(module, last)
        return found

    def _put(self, own: str, values: Tensor) -> None:
        trained = self._empty[own].requires_grad
        parameter = nn.Parameter(values.to(self.device), requires_grad=trained)
        for module, last in self._places[own]:
            setattr(module, last, parameter)
