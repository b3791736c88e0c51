"""How much of a layer's output quantization moves: the error that reports tell, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rqat_kernels.dispatch import one_thread

from ..contracts import Block, SharedInput
from .memory import JUDGED_AT_ONCE

SUMMED_AT_ONCE = 1 << 17
"""Weights that a CPU squares and sums at once: what stays in its cache."""


def input_scale(block: Block, group: SharedInput, before: Mapping[str, Tensor]) -> Tensor | None:
    """What a quantizer folded into the module before a group: `s (I,)`, where the layers now read `x / s`.

    It is read off the group's first layer, whose columns were multiplied by `s`; None when that has not been touched.

    Args:
        before: parameters of the block before quantization.
    """
    first = group.names[0]
    old, new = before[f"{first}.weight"].float().norm(dim=0), block.linear(first).weight.float().norm(dim=0)
    if torch.equal(old, new):
        return None
    return torch.where(old > 0, new / old, torch.ones_like(old))


def relative_error(weight: Tensor, w_hat: Tensor, hessian: Tensor | None) -> float:
    """Share of the squared output that quantization moves: `tr(D H D^T) / tr(W H W^T)` with `D = w_hat - W`.

    All float32, or close to it: see `_product`. Without a Hessian it is taken as the identity, which gives the relative
    squared error of the weights.
    """
    if hessian is None and weight.is_cpu:
        with one_thread():
            moved, whole = _squares(weight, w_hat)
        return moved / whole if whole > 0 else 0.0

    def energy(matrix: Tensor) -> float:
        return float(((matrix if hessian is None else _product(matrix, hessian)) * matrix).sum(dtype=torch.float64))

    moved, whole = 0.0, 0.0
    rows = max(1, JUDGED_AT_ONCE // weight.shape[1])
    for before, after in zip(weight.split(rows), w_hat.split(rows), strict=True):
        whole += energy(before)
        moved += energy(after - before)
    return max(0.0, moved) / whole if whole > 0 else 0.0


def _squares(weight: Tensor, w_hat: Tensor) -> tuple[float, float]:
    """Sums of squares of `w_hat - weight` and of `weight`.

    Of each piece in float32, where torch adds up pair by pair, which keeps eight digits; of all pieces in float64.
    """
    moved, whole = 0.0, 0.0
    pairs = zip(weight.reshape(-1).split(SUMMED_AT_ONCE), w_hat.reshape(-1).split(SUMMED_AT_ONCE), strict=True)
    place = torch.empty(SUMMED_AT_ONCE)  # which stays in the cache
    for before, after in pairs:
        own = place[: len(before)]
        whole += float(torch.mul(before, before, out=own).sum())
        torch.sub(after, before, out=own)
        moved += float(own.mul_(own).sum())
    return moved, whole


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, float32.

    On a GPU from two bfloat16 parts of each matrix, without the product of the small ones: that keeps sixteen bits of
    every factor, and runs on matrix units, which have nothing for float32.
    """
    if not left.is_cuda:
        return left @ right
    (a, a_rest), (b, b_rest) = _parts(left), _parts(right)
    result = torch.mm(a, b, out_dtype=torch.float32)
    return result.add_(torch.mm(a_rest, b, out_dtype=torch.float32)).add_(torch.mm(a, b_rest, out_dtype=torch.float32))


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 matrix as a sum of two in bfloat16."""
    first = matrix.bfloat16()
    return first, (matrix - first).bfloat16()
