"""Block-AP: trains weights, scales and zero points of one decoder block after the other (arXiv 2407.11062, 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

import rqat

LOWEST_USEFUL = 5e-4
"""Share of their size by which latent weights have to move in a step; rates that are counted in weights are lower."""


class Options(rqat.Options):
    """Options of `block-ap`.

    Attributes:
        start: the quantizer that each block starts from, by name, or a mapping with its options:
            `{method: gptq, narrowest: 0.5}`.
        epochs: how often a block sees every calibration sequence; 0 leaves the start as it is.
        batch: sequences per step.
        lr: learning rate of the latent weights, at first, as a share of their size, the root mean square of the
            block's weights: the same number then suits models whose weights are ten times as large. It falls to a
            twentieth along a cosine, as all three do.
        scale_lr: of the scales, relative to the scale itself; null freezes them.
        zero_lr: of the zero points, in codes; null freezes them.
        reach: farthest a latent weight starts from its code's value, in steps of the grid; the border is at 0.5.
        target: what a block is to put out: `original`, what the original block makes of the original inputs, so that
            it also makes up for the blocks before it; `inputs`, what the original block makes of the inputs it gets.
        loss: `mse` is the squared error of a token's hidden state; `relative` divides it by the squared length of its
            target, so that the few tokens with very large hidden states do not count for all others.
        held_out: of so many sequences one is not trained on; the epoch that is best on those is kept, and where none
            is better than the start, the start.
        seed: order of the sequences.
    """

    start: rqat.Start = Field(default=rqat.Start(method="gptq"))
    epochs: int = Field(default=8, ge=0)
    batch: int = Field(default=4, ge=1)
    lr: float = Field(default=5e-3, ge=0)
    scale_lr: float | None = Field(default=1e-3, ge=0)
    zero_lr: float | None = Field(default=None, ge=0)
    reach: float = Field(default=0.4, ge=0, le=0.5)
    target: Literal["original", "inputs"] = "original"
    loss: Literal["mse", "relative"] = "relative"
    held_out: int = Field(default=16, ge=2)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    def check(self, context: rqat.Context) -> Iterable[rqat.Problem]:
        """Whether there is anything to train."""
        if self.epochs and not (self.lr or self.scale_lr or self.zero_lr):
            yield rqat.Problem(
                "nothing is trained: lr, scale_lr and zero_lr are 0 or null.",
                f"Set one of them, or use '{self.start.method}' by itself.",
                "lr",
                level="warning",
            )
        if self.epochs and 0 < self.lr < LOWEST_USEFUL:
            yield rqat.Problem(
                f"{self.lr:g}: one step moves a weight by no more than {100 * self.lr:g} % of the weights' size.",
                "Usual are 1e-3 to 2e-2, as a share of it.",
                "lr",
                level="warning",
            )
        fixed = bool(context.schemes) and all(scheme.symmetric for scheme in context.schemes.values())
        if self.zero_lr and fixed:
            yield rqat.Problem("symmetric schemes have no zero points to train.", "", "zero_lr", level="note")


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `block-ap`."""
    register(
        "block-ap",
        options=Options,
        load=".solver:BlockAp",
        needs=("hessian", "streams"),
        grids=None,
        summary="train weights and scales of one block after the other on what the original block puts out",
        paper="2407.11062",
    )
