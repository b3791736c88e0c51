"""Sums over tokens at the input of linear layers, and the means they become."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rqat_kernels.hessian import add_gram

from ..contracts import LinearStats, Statistic
from .experts import routed

CHUNK = 512
"""Columns of a Hessian that are mirrored at once."""


def empty(width: int, needs: frozenset[Statistic], device: torch.device) -> LinearStats:
    """Zeros for what is needed of inputs with `width` features."""
    shapes: dict[str, tuple[int, ...]] = {
        "hessian": (width, width),
        "absmean": (width,),
        "mean": (width,),
        "absmax": (width,),
        "cross": (width, width),
    }
    kept: dict[str, Any] = {name: torch.zeros(shape, device=device) for name, shape in shapes.items() if name in needs}
    return LinearStats(**kept)


def accumulate(stats: LinearStats, x: Tensor, original: Tensor | None = None, weight: Tensor | None = None) -> None:
    """Adds inputs `x (N, I)` to sums and maxima in float32; `finish` makes means of the sums.

    Args:
        original: the same tokens' inputs `(N, I)` in the model before quantization.
        weight: `(N,)`, what a token counts in second moments.
    """
    stats.tokens += x.shape[0]
    if stats.mean is not None:
        stats.mean.add_(x.float().sum(0))
    if stats.absmax is not None and len(x):
        torch.maximum(stats.absmax, x.float().abs().amax(0), out=stats.absmax)
    if stats.cross is not None and original is not None:
        rest = original.float() - x.float()
        stats.cross.addmm_(x.float().T, rest if weight is None else rest * weight[:, None])
    if stats.absmean is not None:
        stats.absmean.add_(x.float().abs().sum(0))
    if stats.hessian is not None:
        add_gram(stats.hessian, x if weight is None else x * weight.sqrt()[:, None].to(x.dtype))


def add_inputs(
    stats: LinearStats, x: Tensor, real: Tensor | None, weight: Tensor | None = None, original: Tensor | None = None
) -> None:
    """Adds what a layer reads of a batch: all tokens `(B, T, I)`, or an expert the rows `(N, I)` that were sent to it.

    Args:
        real: places of the batch's tokens that are no padding, in `(B T)`; None without padding.
        weight: `(B T,)`, see `accumulate`.
        original: what it reads in the original model; of an expert, tokens that both models sent there count.
    """
    tokens, kept = routed(x), real
    rows = x if tokens is not None else x.flatten(0, 1)
    theirs = original if original is None or tokens is not None else original.flatten(0, 1)
    if tokens is not None:
        theirs = None if original is None else _matched(rows, tokens, original)
        kept = None if real is None else torch.isin(tokens, real).nonzero()[:, 0]
        weight = None if weight is None else weight[tokens]
    if kept is not None:
        rows = rows.index_select(0, kept)
        theirs, weight = (None if one is None else one.index_select(0, kept) for one in (theirs, weight))
    accumulate(stats, rows, theirs, weight)


def _matched(rows: Tensor, tokens: Tensor, others: Tensor) -> Tensor:
    """Another model's rows of an expert for these tokens; these rows themselves where it sent a token elsewhere."""
    theirs, found = routed(others), rows.clone()
    assert theirs is not None
    found[torch.isin(tokens, theirs)] = others[torch.isin(theirs, tokens)].to(rows.dtype)
    return found


def finish(stats: LinearStats) -> None:
    """Turns the sums of `accumulate` into means over tokens, and mirrors the Hessian's upper half."""
    tokens = max(1, stats.tokens)  # an expert may have seen none
    for total in (stats.mean, stats.cross):
        if total is not None:
            total.div_(tokens)
    if stats.absmean is not None:
        stats.absmean.div_(tokens)
    if stats.hessian is not None:
        hessian = stats.hessian.div_(tokens)
        for start in range(0, hessian.shape[0], CHUNK):
            stop = start + CHUNK
            # Inside a chunk on the diagonal both halves are there; copying one makes them equal to the bit.
            square = hessian[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def taken(stats: LinearStats) -> list[Tensor]:
    """The statistics that were asked for."""
    found = (stats.hessian, stats.absmean, stats.mean, stats.absmax, stats.cross)
    return [statistic for statistic in found if statistic is not None]
