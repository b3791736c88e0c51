"""HQQ's fit: the zero point of every group that loses least in an lp norm. `reference.py` is the definition.

On CUDA one Triton kernel for all iterations. It sums in another order and takes powers by two approximations of the
hardware, so of two zero points that lose as good as equally either may win.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..op import op
from . import reference

__all__ = ["fit_hqq"]

WIDEST_GROUP = 8192
"""Weights per group a program's registers hold; wider groups are left to the reference."""


def _takes(weight: Tensor, scale: Tensor, zero: Tensor, *_: object) -> bool:
    fits = weight.shape[1] <= WIDEST_GROUP * scale.shape[1] and weight.dtype != torch.float64
    return fits and use_triton(weight, scale, zero)


fit_hqq = op(
    "rqat::fit_hqq",
    fake=lambda weight, scale, *_: torch.empty(scale.shape, dtype=torch.float32, device=scale.device),
    kernel="kernel.fit_hqq",
    takes=_takes,
    plain=True,
)(reference.fit_hqq)
