"""Sums of `x x^T` for Hessians. `reference.py` is the definition, `kernel.py` the one for 16-bit inputs on a GPU."""

from __future__ import annotations

import torch

from ..dispatch import use_triton
from ..op import op
from . import reference

__all__ = ["add_gram"]

# Products of 16-bit inputs are exact in float32, so that the two differ in the order of their sums only.
add_gram = op(
    "rqat::add_gram",
    fake=lambda hessian, x: None,
    kernel="kernel.add_gram",
    takes=lambda hessian, x: use_triton(hessian, x) and x.dtype in (torch.bfloat16, torch.float16),
    mutates=("hessian",),
)(reference.add_gram)
