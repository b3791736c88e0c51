"""AWQ: scales up the input features that matter most before rounding, so that they err less (arXiv 2306.00978)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

import rqat

Clip = Literal["minmax", "mse", "ends"]


class Options(rqat.Options):
    """Options of `awq`.

    Attributes:
        grid: exponents tried, evenly from 0 (no scaling) to 1 (an input is scaled by its mean magnitude).
        duo: tries every exponent a second time, with an input divided by its weights' magnitude to the power of what
            the exponent lacks to 1.
        clip: `mse` then narrows the span of each group to the one of least output error; `ends` narrows its two ends by
            different shares; `minmax` spans every weight.
        rounding: the quantizer that rounds the scaled weights, with its options, in place of the clip search and
            rounding to nearest; it may look at the Hessian.
        judge: what decides between scales: `layers`, the output error of the layers that read the input; `block`, the
            output of the whole block, among the scales that are best by their layers. It then also decides, layer by
            layer, between the ways of `clip`.
        finalists: scales of an input that the block decides between.
        sequences: of the calibration data, so many are put through the block each time.
    """

    grid: int = Field(default=20, ge=2)
    duo: bool = False
    clip: Clip = "mse"
    rounding: rqat.Start | None = None
    judge: Literal["layers", "block"] = "layers"
    finalists: int = Field(default=4, ge=2)
    sequences: int = Field(default=8, ge=1)

    def also_needs(self) -> Iterable[str]:
        """What the block puts out, where that decides."""
        return ("streams",) if self.judge == "block" else ()


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `awq`."""
    register(
        "awq",
        options=Options,
        load=".solver:Awq",
        needs=("hessian", "absmean"),
        summary="scale up the input features that matter most, then round to nearest",
        paper="2306.00978",
    )
