"""Linear layer on packed weights. `reference.py` is the definition, `module.py` the layer for models.

On CUDA, in 16 bits: few rows, as many as was measured to pay, go to kernels that read the packed weight (`kernel.py`);
more rows to a dense copy of it, made in one pass and thrown away, and cuBLAS. Elsewhere: a dense copy and torch.

Keys of `measured("packed_linear", device)`:

    rows      most rows for the packed kernels: a number, or a mapping of bits ("2") to numbers; 64 when absent
    configs   mapping "b2-m8-n4096-k4096" (m: rows rounded up to 1, 2, 4, 8, ... 256) to fields of `choose.Config`
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..decode import silu_mul
from ..dispatch import measured, use_triton
from ..op import op
from ..packing import PackedWeight, dequantize_packed
from ..packing.dequantize import arguments
from .choose import choose
from .module import PackedLinear

__all__ = ["PackedLinear", "packed_linear", "packed_swiglu"]

MOST_ROWS = 64
"""Rows up to which reading packed weights is taken to be faster than cuBLAS, where nothing was measured."""


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`y = x w_hat^T + bias`, differentiable in `x` and `bias`.

    Args:
        x: `(..., I)`; bfloat16 or float16 for the kernels, which run on CUDA.
        weight: the packed weight; groups of a multiple of 128 or whole rows for the kernels of few rows, other groups
            go by way of a dense matrix.
        bias: `(O,)`.

    Returns:
        `(..., O)` in the type of `x`; equal from run to run, bit by bit.

    Raises:
        ValueError: the last size of `x` is not I.
    """
    if x.shape[-1] != weight.in_features:
        raise ValueError(f"x has {x.shape[-1]} features, the packed weight takes {weight.in_features}")
    return _op(x, *arguments(weight), bias)


def _keep(ctx, inputs, output) -> None:
    _, words, extra, params, *sizes, bias = inputs
    ctx.save_for_backward(words, extra, params)
    ctx.sizes, ctx.biased = sizes, bias is not None


def _backward(ctx, gradient):
    words, extra, params = ctx.saved_tensors
    to_x = to_bias = None
    if ctx.needs_input_grad[0]:
        out_features, in_features, bits, group = ctx.sizes
        weight = PackedWeight(out_features, in_features, bits, group, words, extra, params)
        to_x = gradient @ dequantize_packed(weight, gradient.dtype)
    if ctx.biased and ctx.needs_input_grad[8]:
        to_bias = gradient.flatten(0, -2).sum(0)
    return to_x, None, None, None, None, None, None, None, to_bias


@op(
    "rqat::packed_linear",
    fake=lambda x, words, extra, params, out_features, *_: x.new_empty((*x.shape[:-1], out_features)),
    keep=_keep,
    backward=_backward,
)
def _op(
    x: Tensor, words: Tensor, extra: Tensor | None, params: Tensor, out_features: int, in_features: int, bits: int,
    group: int, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    weight = PackedWeight(out_features, in_features, bits, group, words, extra, params)
    found = _by_kernel(x, weight, bias, gated=False)
    return torch.nn.functional.linear(x, dequantize_packed(weight, x.dtype), bias) if found is None else found


def _by_kernel(x: Tensor, weight: PackedWeight, bias: Tensor | None, *, gated: bool) -> Tensor | None:
    """By a kernel of few rows, where one takes it and pays."""
    rows = x.numel() // weight.in_features if weight.in_features else 0
    half = x.dtype in (torch.bfloat16, torch.float16)
    few = 0 < rows <= most_rows(weight.bits, x.device)
    if not (half and weight.tiled and few and use_triton(x, weight.words)):
        return None
    from .kernel import ROUNDING, holds, packed_linear

    config = choose(rows, weight.out_features, weight.in_features, weight.bits, x.device)
    if config.variant == "dense" or (config.variant in ROUNDING and not holds(x.dtype, weight.params.dtype)):
        return None
    return packed_linear(x, weight, bias, config, gated=gated)


def packed_swiglu(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`silu(gate) * up` (SwiGLU, arXiv 2002.05202), where `gate, up = packed_linear(x, weight, bias).chunk(2, -1)`.

    For inference: it has no backward pass. It is `packed_linear` without writing and reading what is gated.

    Args:
        x: `(..., I)`.
        weight: gates and, behind them, as many others.
        bias: `(O,)`.

    Returns:
        `(..., O / 2)` in the type of `x`.

    Raises:
        ValueError: the last size of `x` is not I, or O is odd.
    """
    if x.shape[-1] != weight.in_features:
        raise ValueError(f"x has {x.shape[-1]} features, the packed weight takes {weight.in_features}")
    if weight.out_features % 2:
        raise ValueError(f"{weight.out_features} outputs are not as many gates as others")
    return _swiglu(x, *arguments(weight), bias)


@op(
    "rqat::packed_swiglu",
    fake=lambda x, words, extra, params, out_features, *_: x.new_empty((*x.shape[:-1], out_features // 2)),
)
def _swiglu(
    x: Tensor, words: Tensor, extra: Tensor | None, params: Tensor, out_features: int, in_features: int, bits: int,
    group: int, bias: Tensor | None,
) -> Tensor:  # fmt: skip
    weight = PackedWeight(out_features, in_features, bits, group, words, extra, params)
    found = _by_kernel(x, weight, bias, gated=True)
    if found is not None:
        return found
    return silu_mul(torch.nn.functional.linear(x, dequantize_packed(weight, x.dtype), bias))


def most_rows(bits: int, device: torch.device) -> int:
    """Rows up to which the kernels of few rows are used."""
    rows = measured("packed_linear", device).get("rows", MOST_ROWS)
    return int(rows.get(str(bits), MOST_ROWS) if isinstance(rows, dict) else rows)
