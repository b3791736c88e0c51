"""AWQ: scales up the input features that matter most before rounding, so that they err less (arXiv 2306.00978)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import rqat


class Options(rqat.Options):
    """Options of `awq`.

    Attributes:
        grid: exponents tried, evenly from 0 (no scaling) to 1 (an input is scaled by its mean magnitude).
        clip: `mse` then narrows the span of each group to the one of least output error; `minmax` spans every weight.
    """

    grid: int = Field(default=20, ge=2)
    clip: Literal["minmax", "mse"] = "mse"


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
