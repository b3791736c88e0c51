"""The uniform grid: weights to codes and back. `reference.py` is the definition.

On CUDA one Triton kernel each, for float32, bfloat16 and float16; equal to the reference to the bit, but for the clip
search, which sums its costs in another order (see `clip.py`). On the CPU the reference is called without a detour
through torch's dispatcher, which costs tens of microseconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..op import op
from . import reference
from .ends import fit_ends
from .reference import fit_minmax, snap_scale

__all__ = ["dequantize", "fit_clip", "fit_ends", "fit_minmax", "quantize", "requantize", "snap_scale"]

IN_KERNELS = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights the kernels read and write; float64 is left to the reference."""


quantize = op(
    "rqat::quantize",
    fake=lambda weight, *_: torch.empty(weight.shape, dtype=torch.uint8, device=weight.device),
    kernel="kernel.quantize",
    takes=lambda weight, scale, zero, _: use_triton(weight, scale, zero) and weight.dtype in IN_KERNELS,
    plain=True,
)(reference.quantize)

dequantize = op(
    "rqat::dequantize",
    fake=lambda codes, scale, zero, dtype: torch.empty(codes.shape, dtype=dtype, device=codes.device),
    kernel="kernel.dequantize",
    takes=lambda codes, scale, zero, dtype: use_triton(codes, scale, zero) and dtype in IN_KERNELS,
    plain=True,
)(reference.dequantize)

requantize = op(
    "rqat::requantize",
    fake=lambda weight, scale, zero, max_code, dtype: torch.empty(weight.shape, dtype=dtype, device=weight.device),
    kernel="kernel.requantize",
    takes=lambda weight, scale, zero, max_code, dtype: (
        use_triton(weight, scale, zero) and weight.dtype in IN_KERNELS and dtype in IN_KERNELS
    ),
    plain=True,
)(reference.requantize)


def _clip_kernel_takes(
    weight: Tensor, groups: int, max_code: int, symmetric: bool, importance: Tensor | None, *_: object
) -> bool:
    if not use_triton(weight, *(() if importance is None else (importance,))):
        return False
    from . import clip

    return clip.takes(weight, groups, importance)


def _scale_and_zero(weight: Tensor, groups: int, *_: object) -> tuple[Tensor, Tensor]:
    scale = torch.empty((weight.shape[0], groups), dtype=torch.float32, device=weight.device)
    return scale, torch.empty_like(scale)


fit_clip = op("rqat::fit_clip", fake=_scale_and_zero, kernel="clip.fit_clip", takes=_clip_kernel_takes, plain=True)(
    reference.fit_clip
)
