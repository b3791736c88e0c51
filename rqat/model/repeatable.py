"""Attention whose gradients are the same to the bit in every run.

On CUDA the kernels behind `scaled_dot_product_attention` add up the gradients of queries in the order in which their
blocks happen to end, so that two runs of one training part after a few steps, and a resumed run from one that was never
interrupted. torch has kernels whose order is fixed, but takes them only where `torch.use_deterministic_algorithms` says
so without `warn_only`; and that, left on, refuses operations that are no part of attention. So it is on for attention
alone: for its gradient, where FlashAttention's kernel then keeps an order, and before it for attention itself, where
torch chooses whose gradient that will be. On Hopper it would choose cuDNN's, which has no order to keep
(`check_cudnn_deterministic` in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic as _deterministic

deterministic: Any = _deterministic

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""What torch asks for before it multiplies matrices with the switch on, as the plain form of attention does."""


@contextmanager
def repeatable_attention(device: str) -> Iterator[None]:
    """Around training: what `torch.nn.functional.scaled_dot_product_attention` returns has repeatable gradients.

    Args:
        device: "cuda" or another. Elsewhere they are repeatable as they are, and nothing changes.
    """
    if not device.startswith("cuda"):
        yield
        return
    with _switched():
        yield


@contextmanager
def _switched() -> Iterator[None]:
    functional: Any = torch.nn.functional
    plain = functional.scaled_dot_product_attention
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, workspace = deterministic.fill_uninitialized_memory, os.environ.get(WORKSPACE)
    deterministic.fill_uninitialized_memory = False  # which would cost a pass over every new tensor
    os.environ.setdefault(WORKSPACE, ":4096:8")
    functional.scaled_dot_product_attention = _with_the_switch(plain)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
        _switch_as(before)
        deterministic.fill_uninitialized_memory = filled
        if workspace is None:
            del os.environ[WORKSPACE]


def _switch_on() -> tuple[bool, bool]:
    """Turns it on; returns how it was, for `_switch_as`."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    return was


def _switch_as(was: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _with_the_switch(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any) -> Tensor:
        if not torch.is_grad_enabled() or not any(one.requires_grad for one in (query, key, value)):
            return plain(query, key, value, *args, **given)
        before: list[tuple[bool, bool]] = []
        query, key, value = _Off.apply(before, query, key, value)
        was = _switch_on()
        try:
            found = plain(query, key, value, *args, **given)
        finally:
            _switch_as(was)
        chained: Tensor = _On.apply(before, found)
        return chained

    return scaled_dot_product_attention


class _On(torch.autograd.Function):
    """Behind attention: its gradient is asked for first, so that the switch is on when attention's is."""

    @staticmethod
    def forward(ctx: Any, before: list[tuple[bool, bool]], found: Tensor) -> Tensor:
        ctx.before = before
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.before[:] = [_switch_on()]
        return None, *grads


class _Off(torch.autograd.Function):
    """Before attention: its gradient comes last, and the switch is as it was."""

    @staticmethod
    def forward(ctx: Any, before: list[tuple[bool, bool]], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.before = before
        return tuple(one.view_as(one) for one in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (was,) = ctx.before
        _switch_as(was)
        return None, *grads
