"""`H += x^T x` in plain torch, float32: half of the products, since the sum is symmetric."""

from __future__ import annotations

from torch import Tensor

CHUNK = 512
"""Rows of the sum computed at once, from the diagonal on to the right."""


def add_gram(hessian: Tensor, x: Tensor) -> None:
    """Adds `x^T x` of `x (T, I)` to `hessian (I, I)` float32, from the diagonal's chunk on to the right, in place."""
    x = x.float()
    for start in range(0, x.shape[1], CHUNK):
        stop = start + CHUNK
        hessian[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
