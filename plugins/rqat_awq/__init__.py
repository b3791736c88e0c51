"""AWQ: scales up the input features that matter most before rounding, so that they err less (arXiv 2306.00978)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import rqat


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
    """

    grid: int = Field(default=20, ge=2)
    duo: bool = False
    clip: Literal["minmax", "mse", "ends"] = "mse"
    rounding: rqat.Start | None = None


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
