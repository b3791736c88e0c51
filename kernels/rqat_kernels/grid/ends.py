"""The clip search with either end of a group's span narrowed by itself, in plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import _cost, _grid_on, _span, fit_clip

PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Weights that are searched at once: as many as caches hold, on a GPU as many as take little of its memory."""


def fit_ends(
    weight: Tensor,
    groups: int,
    max_code: int,
    *,
    symmetric: bool,
    importance: Tensor | None = None,
    shrinks: int = 8,
    narrowest: float = 0.4,
) -> tuple[Tensor, Tensor]:
    """Like `fit_clip`, but the low and the high end of a span may be narrowed by different shares.

    Both by the same first; then the low end by itself, then the high end, each from the best that was found before:
    `3 shrinks` tries. A symmetric grid has one end to narrow, and gets `fit_clip`.
    """
    if symmetric:
        return fit_clip(
            weight, groups, max_code, symmetric=True, importance=importance, shrinks=shrinks, narrowest=narrowest
        )
    grouped = weight.float().view(weight.shape[0], groups, -1)
    if importance is not None:
        importance = importance.float().view((groups, -1) if importance.dim() == 1 else importance.shape)
    rows = max(1, PIECE.get(weight.device.type, 1 << 26) // max(1, weight.shape[1]))
    shares = [1.0 - (1.0 - narrowest) * step / max(1, shrinks - 1) for step in range(shrinks)]
    found = [_search(piece, max_code, importance, shares) for piece in grouped.split(rows)]
    scale, zero = (torch.cat(parts) for parts in zip(*found, strict=True))
    return scale, zero


def _search(grouped: Tensor, max_code: int, importance: Tensor | None, shares: list[float]) -> tuple[Tensor, Tensor]:
    """Scale and zero point `(O, G)` of weights `(O, G, g)`."""
    low, high = _span(grouped)
    scale, zero = _grid_on(low, high, max_code, False)
    least = torch.full_like(scale, torch.inf)
    error = torch.empty_like(grouped)

    def consider(a: Tensor, b: Tensor) -> Tensor:
        """Whether spans from `a` to `b (O, G)` are better than all before; they are kept where they are."""
        nonlocal scale, zero, least
        s, z = _grid_on(a, b, max_code, False)
        torch.div(grouped, s[..., None], out=error).round_()
        error.clamp_(-z[..., None], max_code - z[..., None]).mul_(s[..., None]).sub_(grouped)
        cost = _cost(error, importance)
        better = cost < least
        least = torch.where(better, cost, least)
        scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
        return better

    best_low, best_high = low, high
    for share in shares:
        better = consider(low * share, high * share)
        best_low, best_high = torch.where(better, low * share, best_low), torch.where(better, high * share, best_high)
    for share in shares:
        best_low = torch.where(consider(low * share, best_high), low * share, best_low)
    for share in shares:
        consider(best_low, high * share)
    return scale, zero
