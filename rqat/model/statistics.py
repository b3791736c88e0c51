"""Sums over tokens at the input of linear layers, and the means they become."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rqat_kernels.hessian import add_gram

from ..contracts import LinearStats, Statistic

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


def finish(stats: LinearStats) -> None:
    """Turns the sums of `accumulate` into means over tokens, and mirrors the Hessian's upper half."""
    for total in (stats.mean, stats.cross):
        if total is not None:
            total.div_(stats.tokens)
    if stats.absmean is not None:
        stats.absmean.div_(stats.tokens)
    if stats.hessian is not None:
        hessian = stats.hessian.div_(stats.tokens)
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
