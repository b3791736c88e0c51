"""GPTQ's column loop in plain torch (arXiv 2210.17323, algorithm 1): the definition the blocked path is tested against.

Letters: weight `w (O, I)`, `H (I, I)` the mean of `x x^T`, `U` upper triangular with `U^T U = H^-1`. For i = 0 .. I-1:

    q[:, i]     = clamp(round_half_even(w[:, i] / s) + z, 0, Q)
    e           = (w[:, i] - (q[:, i] - z) s) / U[i, i]
    w[:, i+1:] -= e U[i, i+1:]

The output error `tr((w_hat - w) H (w_hat - w)^T)` is the sum of all `e**2`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Refit = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""`(weights (O, g), their columns) -> scale (O, 1), zero (O, 1)`: one group's grid, fitted when the loop reaches it."""


def gptq_loop(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    group_of: Tensor,
    *,
    refit: Refit | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `(O, I)` uint8, scale `(O, G)` and zero `(O, G)`, one column after the other, in the dtype of `weight`.

    Args:
        weight: `(O, I)`, columns in the order in which they are to be rounded.
        factor: `U (I, I)`, upper triangular, in the same order.
        scale: `(O, G)`; used as it is, or replaced group by group when `refit` is given.
        zero: `(O, G)` whole numbers.
        max_code: `Q`.
        group_of: `(I,)` int64, the group of each column. With `refit` every group is one run of columns.
        refit: fits the grid of a group anew from its weights as earlier columns' errors have changed them.
    """
    w, scale, zero = weight.clone(), scale.to(weight.dtype, copy=True), zero.to(weight.dtype, copy=True)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    group = -1
    for i, g in enumerate(group_of.tolist()):
        if refit is not None and g != group:
            columns = slice(i, i + int((group_of == g).sum()))
            fitted = refit(w[:, columns], columns)
            scale[:, g], zero[:, g] = fitted[0][:, 0].to(w.dtype), fitted[1][:, 0].to(w.dtype)
            group = g
        q = (torch.round(w[:, i] / scale[:, g]) + zero[:, g]).clamp(0, max_code)
        error = (w[:, i] - (q - zero[:, g]) * scale[:, g]) / factor[i, i]
        w[:, i + 1 :] -= torch.outer(error, factor[i, i + 1 :])
        codes[:, i] = q.to(torch.uint8)
    return codes, scale, zero
