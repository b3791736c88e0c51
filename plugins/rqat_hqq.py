"""Half-quadratic quantization (HQQ, Badri and Shaji, https://mobiusml.github.io/hqq_blog/): searches zero points.

Needs no data. The scale of a group stays that of its span; its zero point goes where `sum |w - w_hat|^p` is least for a
`p` below 1, to which a few large errors matter less than to a square. The search is `rqat_kernels.hqq.fit_hqq`.

What there is to gain depends on the grid. Real zero points shift all values of a group by any amount. Whole ones only
choose which multiples of the scale have codes, and the span has chosen nearly as well: rounding then loses the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

import rqat

if TYPE_CHECKING:
    import torch


class Options(rqat.Options):
    """Options of `hqq`.

    Attributes:
        lp_norm: the `p` of the norm: 1 weighs errors by their size; the smaller, the less large errors count.
        iterations: at most so many steps of the search; a group ends sooner when its norm no longer falls.
    """

    lp_norm: float = Field(default=0.7, gt=0, le=1)
    iterations: int = Field(default=20, ge=0)

    def check(self, context: rqat.Context) -> Iterable[rqat.Problem]:
        """A note where the grid leaves the search little or nothing to do."""
        if any(scheme.symmetric for scheme in context.schemes.values()):
            yield rqat.Problem(
                "symmetric schemes have no zero point for 'hqq' to search: it rounds as 'rtn' does.",
                "Leave out -sym, or use rtn or gptq.",
                "method",
                level="note",
            )
        elif any(scheme.grid == "uniform" for scheme in context.schemes.values()):
            yield rqat.Problem(
                "whole zero points, as the grid 'uniform' has them, leave 'hqq' next to nothing to gain over 'rtn'.",
                "Use gptq, or a grid with real zero points.",
                "method",
                level="note",
            )


class HalfQuadratic(rqat.Quantizer):
    """See the module. On grids without a zero point to search it takes the grid's own fit."""

    options: Options

    def quantize_linear(
        self, weight: torch.Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme
    ) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`."""
        from rqat_kernels.grid import fit_minmax
        from rqat_kernels.hqq import fit_hqq

        grid = rqat.grid_of(scheme)
        if grid.uniform:
            groups = scheme.groups(weight.shape[1])
            scale, zero = fit_minmax(weight, groups, scheme.max_code, symmetric=scheme.symmetric)
            if not grid.fixed_zero:
                zero = fit_hqq(weight, scale, zero, scheme.max_code, **self.options.model_dump())
        else:
            scale, zero = grid.fit_layer(weight)
            if not (grid.fixed_zero or grid.whole_zeros):
                rows = weight.reshape(-1, scheme.group_size(weight.shape[1]))
                zero = self._real_zero(grid, rows, scale.view(-1, 1), zero.view(-1, 1)).view_as(zero)
        return grid.quantize_layer(weight, scale, zero)

    def _real_zero(
        self, grid: rqat.Grid, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> torch.Tensor:
        """Zero points `(R, 1)` for `weight (R, g)`, none worse than those given.

        How a grid writes its zero point is its own affair (`(q - z) s`, `q s + z`, ...), so it is asked where its
        lowest value is, how far the next, and how far a zero point larger by one moves them. Where the values are not
        evenly spaced, or do not move in proportion, what is found is worse or no number, and not taken.
        """
        import torch

        from rqat_kernels.hqq import fit_hqq

        code = torch.zeros_like(scale, dtype=torch.uint8)
        lowest = grid.decode(code, scale, zero)
        step = grid.decode(code + 1, scale, zero) - lowest
        moved = grid.decode(code, scale, zero + 1) - lowest
        options = self.options.model_dump()
        found = fit_hqq(weight, step, -lowest / step, grid.scheme.max_code, whole=False, **options)
        found = grid.snap_zero(zero - (lowest + found * step) / moved)
        before, after = (
            (grid.requantize(weight, scale, one) - weight).abs().pow(self.options.lp_norm).sum(1, keepdim=True)
            for one in (zero, found)
        )
        return torch.where(after < before, found, zero)


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `hqq`."""
    register(
        "hqq",
        options=Options,
        load=":HalfQuadratic",
        grids=None,
        summary="zero points of least error in an lp norm; needs no data",
    )
