"""Half-quadratic quantization (Badri and Shaji, https://mobiusml.github.io/hqq_blog/) in plain torch: the definition.

The scale `s` of a group stays; searched is the zero point `z` that makes `sum |e|^p` small for a `p` below 1, to which
a few large errors matter less than to a square. Two steps alternate, all in units of `s`:

    e    = w/s - (q - z),   q = clamp(round(w/s + z), 0, Q)       the error of every weight
    kept = sign(e) max(|e| - |e|^(p - 1) / beta, 0)               errors that may stay: shrunk, small ones to zero
    z    = mean(q - w/s + kept)                                   the zero point that leaves the others least squared
    beta = kappa beta

A group ends when its norm no longer falls. The best of all zero points passed is taken, rounded where they are whole.

The authors' code takes `e` in the unit of the weights. There a `beta` of 10 shrinks every error of a usual layer to
zero, and the norm has no say; in units of `s` the same `beta` means the same for every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA = 10.0
"""Weight of the quadratic term, at first; as in the authors' `optimize_weights_proximal`."""

KAPPA = 1.01
"""Its growth with each iteration; as there."""


def fit_hqq(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    *,
    whole: bool = True,
    lp_norm: float = 0.7,
    iterations: int = 20,
) -> Tensor:
    """Zero points `(O, G)` float32 with which no group has a larger norm than with those given.

    Args:
        weight: `(O, I)`, finite.
        scale, zero: `(O, G)`, where the search starts; `w_hat = (q - zero) * scale`.
        whole: only whole zero points from 0 to `max_code` are taken; else any real number.
        lp_norm: `p`, above 0 and at most 1.
        iterations: at most so many steps.
    """
    share = (weight.float().reshape(*scale.shape, -1) / scale.float()[..., None]).flatten(0, 1)
    best = zero.float().flatten().clone()
    least = _norm(_error(share, best, max_code), lp_norm)
    left, passed, last = torch.arange(len(best), device=best.device), best, torch.full_like(best, torch.inf)
    beta = BETA
    for _ in range(iterations):
        error = _error(share, passed, max_code)
        norm = _norm(error, lp_norm)
        going = norm < last  # the others have ended and are left out from here on
        left, passed, last, share, error = (part[going] for part in (left, passed, norm, share, error))
        if not len(left):
            break
        kept = error.sign() * (error.abs() - error.abs().pow(lp_norm - 1) / beta).clamp(min=0)
        passed = passed - (error - kept).mean(-1)
        beta *= KAPPA
        tried = passed.round().clamp(0, max_code) if whole else passed
        new = tried != best[left]  # whole zero points seldom are
        tried, at = tried[new], left[new]
        norm = _norm(_error(share[new], tried, max_code), lp_norm)
        best[at] = torch.where(norm < least[at], tried, best[at])
        least[at] = torch.minimum(norm, least[at])
    return best.view(scale.shape)


def _error(share: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Rounding errors `(R, g)`, in units of the scale, of `share (R, g)` with zero points `(R,)`."""
    at = share + zero[..., None]
    return at - at.round().clamp(0, max_code)


def _norm(error: Tensor, lp_norm: float) -> Tensor:
    """`(R,)`."""
    return error.abs().pow(lp_norm).sum(-1)
