"""Knowledge distillation from the model before quantization: Reasoning-QAT's first stage (arXiv 2601.14888)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

import rqat
from rqat_kernels.divergences import DIVERGENCES, Name


class Options(rqat.Options):
    """What is distilled, and how.

    Attributes:
        divergence: forward KL(teacher || student), reverse KL(student || teacher), or one that compares with a
            mixture of both, as jsd does; `rqat_kernels.divergences` defines them.
        beta: the teacher's share in that mixture (arXiv 2306.13649).
        temperature: softens both distributions; the loss is multiplied by its square (arXiv 1503.02531).
        sft_weight: share of the plain cross entropy with the data in the loss.
        positions: tokens the loss is averaged over: of the completion, or all.
    """

    divergence: Name = "forward"
    beta: float = Field(default=0.5, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sft_weight: float = Field(default=0.0, ge=0, le=1)
    positions: Literal["completion", "all"] = "completion"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """What it costs to have no kernel."""
        if not DIVERGENCES[self.divergence].fused:
            text = (
                f"'{self.divergence}' has no kernel of its own: on a GPU its loss runs in plain torch, which is slower"
            )
            yield rqat.Problem(f"{text} and holds more logits at once.", key="divergence", level="note")


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    """The card of `kd`."""
    register(
        "kd",
        options=Options,
        load=".objective:Distillation",
        summary="learn the next-token distributions of the model before quantization",
        paper="2601.14888",
        teacher=True,
        logits="chunks",
    )
