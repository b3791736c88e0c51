"""What a decoder does around its linear layers when it decodes one token per row.

`reference.py` is the definition; `kernel.py`, `attention.py` and `ends.py` are the kernels. All can be captured in
a CUDA graph: shapes are fixed, and lengths are read from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from . import reference

__all__ = ["add_rms_norm", "append_greedy", "attend", "look_up", "silu_mul"]


@torch.library.custom_op("rqat::add_rms_norm", mutates_args=())
def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `reference.add_rms_norm`."""
    if use_triton(residual, weight):
        from . import kernel

        return kernel.add_rms_norm(residual, delta, weight, eps)
    return reference.add_rms_norm(residual, delta, weight, eps)


@add_rms_norm.register_fake
def _(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(residual), torch.empty_like(residual)


@torch.library.custom_op("rqat::attend", mutates_args=("keys", "values"))
def attend(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    eps: float,
    window: int,
) -> Tensor:
    """See `reference.attend`."""
    arguments = (qkv, q_weight, k_weight, cos, sin, keys, values, slots, positions, eps, window)
    if use_triton(qkv, keys, values):
        from . import attention

        return attention.attend(*arguments)
    return reference.attend(*arguments)


@attend.register_fake
def _(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    eps: float,
    window: int,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * keys.shape[1] * keys.shape[3])


@torch.library.custom_op("rqat::silu_mul", mutates_args=())
def silu_mul(gate_up: Tensor) -> Tensor:
    """See `reference.silu_mul`."""
    if use_triton(gate_up):
        from . import kernel

        return kernel.silu_mul(gate_up)
    return reference.silu_mul(gate_up)


@silu_mul.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@torch.library.custom_op("rqat::look_up", mutates_args=())
def look_up(
    tokens: Tensor, slots: Tensor, positions: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.look_up`."""
    if use_triton(tokens, embeddings):
        from . import ends

        return ends.look_up(tokens, slots, positions, embeddings, cos, sin)
    return reference.look_up(tokens, slots, positions, embeddings, cos, sin)


@look_up.register_fake
def _(
    tokens: Tensor, slots: Tensor, positions: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, angles = len(slots), cos.shape[1]
    return embeddings.new_empty(rows, embeddings.shape[1]), cos.new_empty(rows, angles), sin.new_empty(rows, angles)


@torch.library.custom_op("rqat::append_greedy", mutates_args=("tokens", "positions"))
def append_greedy(logits: Tensor, tokens: Tensor, slots: Tensor, positions: Tensor, advance: Tensor) -> None:
    """See `reference.append_greedy`."""
    if use_triton(logits, tokens):
        from . import ends

        ends.append_greedy(logits, tokens, slots, positions, advance)
    else:
        reference.append_greedy(logits, tokens, slots, positions, advance)
