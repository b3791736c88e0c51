"""GPTQ's column loop (arXiv 2210.17323, algorithm 1) on a grid without kernels, a column at a time."""

from __future__ import annotations

import torch
from torch import Tensor

import rqat


def gptq_on(
    grid: rqat.Grid, weight: Tensor, factor: Tensor, order: Tensor, importance: Tensor, *, static: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `(O, I)`, scale and zero point `(O, G)`, columns and groups where they were.

    Args:
        weight: `(O, I)`.
        factor: `U (I, I)`, upper triangular with `U^T U = H^-1`, columns in the order in which they are rounded.
        order: `(I,)`, that order.
        importance: `(I,)`, what a squared error of each input feature costs where a group is fitted.
        static: fit every group before the loop; else when the loop reaches it, and then `order` keeps groups together.
    """
    size = grid.scheme.group_size(weight.shape[1])
    scale, zero = grid.fit_layer(weight, importance)
    left = weight[:, order]
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for at, feature in enumerate(order.tolist()):
        group = feature // size
        own = slice(group, group + 1)
        if not static and at % size == 0:
            scale[:, own], zero[:, own] = grid.fit(left[:, at : at + size], importance[order[at : at + size]])
        column = left[:, at : at + 1]
        code = grid.quantize(column, scale[:, own], zero[:, own])
        error = (column - grid.decode(code, scale[:, own], zero[:, own])) / factor[at, at]
        left[:, at + 1 :] -= error * factor[at, at + 1 :]
        codes[:, feature] = code[:, 0]
    return codes, scale, zero
