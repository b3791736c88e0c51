"""Sums of `x x^T` for Hessians. `reference.py` is the definition, `kernel.py` the one for 16-bit inputs on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from . import reference

__all__ = ["add_gram"]


@torch.library.custom_op("rqat::add_gram", mutates_args={"hessian"})
def add_gram(hessian: Tensor, x: Tensor) -> None:
    """`H += x^T x`, in the upper triangle at least; what is below the diagonal afterwards is undefined.

    Products of 16-bit inputs are exact in float32, so that the paths differ in the order of their sums only.

    Args:
        hessian: `(I, I)` float32, contiguous; added to in place.
        x: `(T, I)` inputs of a layer, of any floating dtype.
    """
    if use_triton(hessian, x) and x.dtype in (torch.bfloat16, torch.float16):
        from .kernel import add_gram as launch

        launch(hessian, x)
    else:
        reference.add_gram(hessian, x)


@add_gram.register_fake
def _(hessian: Tensor, x: Tensor) -> None:
    return None
