"""Round to nearest with a percentile clip: a whole rqat plugin in one file.

One large weight stretches the grid of its group and leaves the others few codes. Here the grid spans the given share
of each group; what lies beyond saturates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import rqat

if TYPE_CHECKING:
    import torch


class Options(rqat.Options):
    """Options of `hello`.

    Attributes:
        percentile: share of each group's weights that the grid spans, in percent; 100 is plain min-max rounding.
    """

    percentile: float = Field(default=99.0, gt=50, le=100)


class PercentileClip(rqat.Quantizer):
    """Rounds each weight by itself, on a grid that leaves out the tails of its group; looks at no data."""

    options: Options

    def quantize_linear(
        self, weight: torch.Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme
    ) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`: `weight (O, I)` float32 to codes `(O, I)`, scale and zero point `(O, G)`."""
        import torch

        from rqat_kernels.grid import quantize, snap_scale

        grouped = weight.view(len(weight), scheme.groups(weight.shape[1]), -1)
        tail = (1 - self.options.percentile / 100) / 2
        low = grouped.quantile(tail, dim=-1).clamp(max=0)
        high = grouped.quantile(1 - tail, dim=-1).clamp(min=0)
        if scheme.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        span = high - low
        scale = snap_scale(torch.where(span > 0, span / scheme.max_code, torch.ones_like(span)))
        if scheme.symmetric:
            zero = torch.full_like(scale, scheme.middle)
        else:
            zero = torch.round(-low / scale).clamp(0, scheme.max_code)
        codes = quantize(weight, scale, zero, scheme.max_code)
        return rqat.QuantizedWeight(codes, scale, zero.to(torch.uint8))


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `hello`: read at start-up, so nothing above imports torch."""
    register(
        "hello",
        options=Options,
        load=":PercentileClip",
        summary="round to nearest; the outermost weights of a group saturate",
    )
