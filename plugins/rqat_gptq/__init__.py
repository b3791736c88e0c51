"""GPTQ: rounds column by column and lets the columns still to come make up for the error (arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

import rqat


class Options(rqat.Options):
    """Options of `gptq`.

    Attributes:
        damp: share of the Hessian's mean diagonal that is added to its diagonal. Left out, 0.05 at 2 and 3 bits and
            0.01 with more, where the calibration text can be taken closer to its word.
        shrink: share by which what couples two input features in the Hessian is made smaller: 0 takes the calibration
            text at its word, 1 leaves the diagonal.
        block_columns: columns whose errors are passed on together; changes speed, not results.
        act_order: round the columns with the largest inputs first. Groups stay where they are in memory, so that
            exported files need no column index. `groups` takes whole groups in turn, the largest first, and the
            columns of each likewise, so that a grid can be fitted when its group's turn comes.
        static_groups: fit every group's grid to the original weights, before the loop (true), or to the weights as the
            loop finds them when it reaches the group (false). Left out, it is true with `act_order: true`, which needs
            it, and false otherwise.
        clip: `mse` narrows the span of each group to the one of least squared error, each input feature weighted by how
            much of its error later columns cannot make up for; `ends` narrows its two ends by different shares;
            `minmax` spans every weight. Left out, `ends` at 2 bits and `mse` with more. Grids other than the uniform
            one have a fit of their own.
        narrowest: share of the full span that it may be narrowed to; left out, 0.5 at 2 bits and 0.8 with more. The
            search sees the weights before the loop, which then adds to those still to come: a span that just fits the
            originals cuts them off.
        refits: how often the scales are fitted anew to the codes that the loop has chosen, for the least output error,
            and the loop is run again in between. Left out, 2 up to 4 bits and 0 with more. Of the uniform grid only.
        asymmetric: share of what the layers before have done to a layer's input that its weights make up for (GPTAQ,
            arXiv 2504.02692); more than 0 carries the original model's hidden states along.
        true_sequential: within a block, take the statistics of a layer's inputs when the layers before it have been
            quantized (true), or of all at once (false). Not together with `asymmetric`.
        token_weights: `equal` counts every calibration token the same; `saliency` counts it as much as the model's
            predictions depend on what the layer puts out there (GuidedQuant, arXiv 2505.07004), which takes a backward
            pass.
    """

    damp: float | None = Field(default=None, ge=0, lt=1)
    shrink: float = Field(default=0.0, ge=0, le=1)
    block_columns: int = Field(default=128, ge=1)
    act_order: bool | Literal["groups"] = True
    static_groups: bool | None = None
    clip: Literal["minmax", "mse", "ends"] | None = None
    narrowest: float | None = Field(default=None, gt=0, le=1)
    refits: int | None = Field(default=None, ge=0)
    asymmetric: float = Field(default=0.0, ge=0, le=1)
    true_sequential: bool = False
    token_weights: Literal["equal", "saliency"] = "equal"

    def damp_at(self, bits: int) -> float:
        """`damp`, or what it is at so many bits."""
        return (0.05 if bits < 4 else 0.01) if self.damp is None else self.damp

    def narrowest_at(self, bits: int) -> float:
        """`narrowest`, or what it is at so many bits."""
        return (0.5 if bits == 2 else 0.8) if self.narrowest is None else self.narrowest

    def clip_at(self, bits: int) -> Literal["minmax", "mse", "ends"]:
        """`clip`, or what it is at so many bits."""
        return ("ends" if bits == 2 else "mse") if self.clip is None else self.clip

    def refits_at(self, bits: int) -> int:
        """`refits`, or how many there are at so many bits."""
        return (2 if bits <= 4 else 0) if self.refits is None else self.refits

    def also_needs(self) -> Iterable[str]:
        """See `rqat.Options`."""
        if self.asymmetric:
            yield "cross"
        if self.token_weights == "saliency":
            yield "saliency"

    @model_validator(mode="after")
    def _groups_fit_the_order(self) -> Options:
        if self.act_order is True and self.static_groups is False:
            raise ValueError("static_groups: false needs act_order: false or groups")
        if self.asymmetric and self.true_sequential:
            raise ValueError("asymmetric: compares blocks as they were; it needs true_sequential: false")
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
