"""The uniform grid: weights to codes and back. `reference.py` is the definition.

On CUDA one Triton kernel each, for float32, bfloat16 and float16; equal to the reference to the bit, but for the clip
search, which sums its costs in another order (see `clip.py`). On the CPU the reference is called without a detour
through torch's dispatcher, which costs tens of microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import plain_call, use_triton
from . import reference
from .reference import fit_minmax, snap_scale

__all__ = ["dequantize", "fit_clip", "fit_minmax", "quantize", "requantize", "snap_scale"]

IN_KERNELS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights the kernels read and write; float64 is left to the reference."""


@torch.library.custom_op("rqat::quantize", mutates_args=())
def _quantize(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    if use_triton(weight, scale, zero) and weight.dtype in IN_KERNELS:
        from . import kernel

        return kernel.quantize(weight, scale, zero, max_code)
    return reference.quantize(weight, scale, zero, max_code)


@_quantize.register_fake
def _(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    return torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)


@torch.library.custom_op("rqat::dequantize", mutates_args=())
def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    if use_triton(codes, scale, zero) and dtype in IN_KERNELS:
        from . import kernel

        return kernel.dequantize(codes, scale, zero, dtype)
    return reference.dequantize(codes, scale, zero, dtype)


@_dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(codes.shape, dtype=dtype, device=codes.device)


@torch.library.custom_op("rqat::requantize", mutates_args=())
def _requantize(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, dtype: torch.dtype) -> Tensor:
    if use_triton(weight, scale, zero) and weight.dtype in IN_KERNELS and dtype in IN_KERNELS:
        from . import kernel

        return kernel.requantize(weight, scale, zero, max_code, dtype)
    return reference.requantize(weight, scale, zero, max_code, dtype)


@_requantize.register_fake
def _(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


@torch.library.custom_op("rqat::fit_clip", mutates_args=())
def _fit_clip(
    weight: Tensor,
    groups: int,
    max_code: int,
    symmetric: bool,
    importance: Tensor | None,
    shrinks: int,
    narrowest: float,
) -> tuple[Tensor, Tensor]:
    fit = reference.fit_clip
    if use_triton(weight, *(() if importance is None else (importance,))):
        from . import clip

        if clip.takes(weight, groups, importance):
            fit = clip.fit_clip
    return fit(
        weight,
        groups,
        max_code,
        symmetric=symmetric,
        importance=importance,
        shrinks=shrinks,
        narrowest=narrowest,
    )


@_fit_clip.register_fake
def _(
    weight: Tensor,
    groups: int,
    max_code: int,
    symmetric: bool,
    importance: Tensor | None,
    shrinks: int,
    narrowest: float,
) -> tuple[Tensor, Tensor]:
    scale = torch.empty((weight.shape[0], groups), dtype=torch.float32, device=weight.device)
    return scale, torch.empty_like(scale)


def fit_clip(
    weight: Tensor,
    groups: int,
    max_code: int,
    *,
    symmetric: bool,
    importance: Tensor | None = None,
    shrinks: int = 20,
    narrowest: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """Like `fit_minmax`, with the span of each group narrowed to the one of least squared rounding error.

    Args:
        importance: what an error costs: `(I,)`, a weight per input feature, e.g. the Hessian's diagonal; `(G, g, g)`, a
            quadratic form per group, e.g. the Hessian's blocks; None is the plain square.
        shrinks: number of spans tried, evenly from 1 down to `narrowest`.
    """
    if plain_call(weight):
        return reference.fit_clip(
            weight,
            groups,
            max_code,
            symmetric=symmetric,
            importance=importance,
            shrinks=shrinks,
            narrowest=narrowest,
        )
    return _fit_clip(weight, groups, max_code, symmetric, importance, shrinks, narrowest)


def quantize(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Codes `(O, I)` uint8 of `weight (O, I)` on the grid of `scale (O, G)` and `zero (O, G)`; float32 arithmetic."""
    return (reference.quantize if plain_call(weight) else _quantize)(weight, scale, zero, max_code)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`w_hat (O, I)` in `dtype`: computed in float32, where it is exact, then rounded once."""
    return (reference.dequantize if plain_call(codes) else _dequantize)(codes, scale, zero, dtype)


def requantize(
    weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The grid's values `(O, I)` nearest to `weight`: `dequantize` of `quantize`, without the codes in between."""
    return (reference.requantize if plain_call(weight) else _requantize)(weight, scale, zero, max_code, dtype)
