"""Scales for codes that are already chosen: the least squares of the layer's output error, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from rqat_kernels.grid import snap_scale

AT_ONCE = 1 << 25
"""Numbers of a temporary array at most: rows are done in pieces."""

FARTHEST = 2.0
"""A scale is at most so many times the one before, or as much smaller."""


def refit_scales(
    weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, hessian: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """Scales `(O, G)`, snapped, and the output error of every row with them, less `w H w^T`, `(O,)` float64.

    With `v = codes - zero` a row's error is `s^T A s - 2 b^T s + w H w^T`, where `A[g, k] = v_g H[g, k] v_k^T` and
    `b[g] = v_g (H w^T)[g]`. Its minimum, snapped, is taken for rows where it is less than before.

    Args:
        weight: `(O, I)`.
        codes: `(O, I)` uint8.
        scale: `(O, G)`, that of now.
        zero: `(O, G)`.
        hessian: `(I, I)`, without damping.
        damping: is added to its diagonal.
    """
    groups = scale.shape[1]
    rows = max(1, AT_ONCE // max(weight.shape[1], groups * groups))
    found = [
        _solved(*piece, hessian, damping)
        for piece in zip(weight.split(rows), codes.split(rows), scale.split(rows), zero.split(rows), strict=True)
    ]
    fitted, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return fitted, error


def _solved(
    weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, hessian: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """`refit_scales` of some rows."""
    out, groups = scale.shape
    values = codes.view(out, groups, -1).float() - zero[..., None]
    size = values.shape[2]
    matrix = torch.empty((out, groups, groups), dtype=torch.float64, device=weight.device)
    for group in range(groups):
        seen = (values[:, group] @ hessian[group * size : (group + 1) * size]).view_as(values)
        matrix[:, group] = (seen * values).sum(-1)
    matrix.diagonal(dim1=1, dim2=2).add_(values.square().sum(-1), alpha=damping)
    wanted = torch.addmm(weight, weight, hessian, beta=damping).view_as(values)
    right = (wanted * values).sum(-1).double()
    # A group of zeros says nothing of its scale, and keeps it.
    silent = values.abs().amax(-1) == 0
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp(min=1e-30)
    before = scale.double()
    solving = matrix.clone()
    solving.diagonal(dim1=1, dim2=2).add_(torch.where(silent, mean, 1e-6 * mean))
    best = torch.linalg.solve(solving, torch.where(silent, mean * before, right + 1e-6 * mean * before))
    fitted = snap_scale(torch.minimum(torch.maximum(best, before / FARTHEST), before * FARTHEST))

    def error(s: Tensor) -> Tensor:
        return ((matrix @ s[..., None])[..., 0] * s).sum(-1) - 2 * (right * s).sum(-1)

    old, new = error(before), error(fitted.double())
    return torch.where((new < old)[:, None], fitted, scale), torch.minimum(old, new)
