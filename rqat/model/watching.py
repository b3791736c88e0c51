"""A look into the forward pass of a model's blocks: what they are called with, and what their layers read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from ..contracts import Block


class _Collected(Exception):
    """Ends a forward pass when the last input of interest has been seen."""


@contextmanager
def watching(block: Block, look: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Calls `look` with the number and the input of every group of layers, and ends the pass after the last."""
    seen = 0

    def hook(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal seen
            look(index, inputs[0])
            seen += 1
            if seen == len(block.inputs):
                raise _Collected

        return observe

    handles = [
        block.linear(group.names[0]).register_forward_pre_hook(hook(index)) for index, group in enumerate(block.inputs)
    ]
    try:
        with suppress(_Collected):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording(modules: Sequence[nn.Module], seen: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[None]:
    """Makes modules note how they are called instead of computing."""

    def record(hidden: Tensor, **keywords: Any) -> Tensor:
        seen.append((hidden, keywords))
        return hidden

    for module in modules:
        module.forward = record
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def hidden_of(out: Any) -> Tensor:
    """Hidden states in what a block puts out."""
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden
