"""`H += x^T x` in plain torch, float32: half of the products, since the sum is symmetric."""

from __future__ import annotations

from torch import Tensor

CHUNK = 512
"""Rows of the sum computed at once, from the diagonal on to the right."""


def add_gram(hessian: Tensor, x: Tensor) -> None:
    """`H += x^T x`, in the upper triangle at least; what is below the diagonal afterwards is undefined.

    Args:
        hessian: `(I, I)` float32, contiguous; added to in place, here from the diagonal's chunk on to the right.
        x: `(T, I)` inputs of a layer, of any floating dtype.
    """
    x = x.float()
    for start in range(0, x.shape[1], CHUNK):
        stop = start + CHUNK
        hessian[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
