"""The column loop in two levels of blocks on the transposed weight: the sums of `reference.py` in a faster order.

A column's error reaches the rest of its mini-block at once (a rank-1 update of a few rows), the rest of its block when
the mini-block is done, and everything behind it when the block is done (one matrix product each). On the transposed
weight `(I, O)` a column is one contiguous row, so that nothing is read with a stride.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .reference import Refit

MINI_BLOCK = 32


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    group_of: Tensor,
    *,
    refit: Refit | None = None,
    columns: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `reference.gptq_loop`, in float32; `columns` is the width of a block, and groups have equal sizes."""
    w = weight.float().t().clone(memory_format=torch.contiguous_format)
    u = factor.float()
    pivots, groups = u.diagonal().tolist(), group_of.tolist()
    s = scale.float().t().clone(memory_format=torch.contiguous_format)
    z = zero.float().t().clone(memory_format=torch.contiguous_format)
    run = w.shape[0] // s.shape[0] if refit is not None else 1
    codes = torch.empty(w.shape, dtype=torch.uint8, device=w.device)
    for start, stop in _spans(0, w.shape[0], columns, run):
        errors = torch.empty((stop - start, w.shape[1]), dtype=w.dtype, device=w.device)
        for a, b in _spans(start, stop, MINI_BLOCK, run):
            for i in range(a, b):
                g = groups[i]
                if refit is not None and i % run == 0:
                    fitted = refit(w[i : i + run].t().contiguous(), slice(i, i + run))
                    s[g], z[g] = fitted[0][:, 0], fitted[1][:, 0]
                q = torch.div(w[i], s[g]).round_().add_(z[g]).clamp_(0, max_code)
                codes[i] = q
                error = errors[i - start]
                torch.sub(w[i], q.sub_(z[g]).mul_(s[g]), out=error)
                error.div_(pivots[i])
                w[i + 1 : b].addr_(u[i, i + 1 : b], error, alpha=-1)
            w[b:stop].addmm_(u[a:b, b:stop].t(), errors[a - start : b - start], alpha=-1)
        w[stop:].addmm_(u[start:stop, stop:].t(), errors, alpha=-1)
    return codes.t().contiguous(), s.t().contiguous(), z.t().contiguous()


def _spans(start: int, stop: int, width: int, run: int) -> list[tuple[int, int]]:
    """Cuts columns into spans of at most `width`, so that no run of a group that is to be refitted begins behind a
    column of its span and ends beyond the span: such a group would be seen with errors still pending.
    """
    if run <= width:
        cuts = set(range(start, stop, width // run * run))
    else:
        cuts = set(range(start, stop, width)) | set(range(-(-start // run) * run, stop, run))
    ordered = [*sorted(cuts), stop]
    return list(pairwise(ordered))
