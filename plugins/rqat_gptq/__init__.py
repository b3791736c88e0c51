"""GPTQ: rounds column by column and lets the columns still to come make up for the error (arXiv 2210.17323)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import rqat


class Options(rqat.Options):
    """Options of `gptq`.

    Attributes:
        damp: share of the Hessian's mean diagonal that is added to its diagonal.
        block_columns: columns whose errors are passed on together; changes speed, not results.
        act_order: round the columns with the largest inputs first. Groups stay where they are in memory, so that
            exported files need no column index.
        static_groups: fit every group's grid to the original weights, before the loop (true), or to the weights as the
            loop finds them when it reaches the group (false). Left out, it is true with `act_order`, which needs it,
            and false without.
        clip: `mse` narrows the span of each group to the one of least squared error, each input feature weighted by how
            much of its error later columns cannot make up for; `minmax` spans every weight. Grids other than the
            uniform one have a fit of their own.
        narrowest: share of the full span that `mse` may narrow it to. The search sees the weights before the loop,
            which then adds to those still to come: a span that just fits the originals cuts them off.
    """

    damp: float = Field(default=0.01, ge=0, lt=1)
    block_columns: int = Field(default=128, ge=1)
    act_order: bool = True
    static_groups: bool | None = None
    clip: Literal["minmax", "mse"] = "mse"
    narrowest: float = Field(default=0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _groups_fit_the_order(self) -> Options:
        if self.act_order and self.static_groups is False:
            raise ValueError("static_groups: false needs act_order: false")
        return self


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `gptq`."""
    register(
        "gptq",
        options=Options,
        load=".solver:Gptq",
        needs=("hessian",),
        grids=None,
        summary="round column by column, later columns make up for the error",
        paper="2210.17323",
    )
