"""GPTQModel's GPTQ as a quantizer, layer by layer on rqat's own walk through the model (package gptqmodel).

The column loop, the order of columns, the damping and the fit of the groups are GPTQModel's; the statistics, the blocks
before that are quantized already, resuming and the scales' dtype are rqat's. What it is for: comparing two GPTQs on the
same statistics, and results that somebody has had with GPTQModel.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import Field

import rqat

TRIED = "7.6."
"""The releases whose class for a layer has been run; it is no public face, and later ones need a newer torch."""


class Options(rqat.Options):
    """Options of `gptqmodel`; what is left out is GPTQModel's own choice.

    Attributes:
        damp: share of the Hessian's mean diagonal that is added to its diagonal (`damp_percent`).
        act_order: round the columns with the largest inputs first: `groups` takes whole groups in turn, and the columns
            of each likewise (`act_group_aware`); true takes all columns, with grids fitted before the loop
            (`desc_act` and `static_groups`); false takes them as they stand.
        mse: the power of the error by which the span of a group is narrowed; 0 spans every weight.
    """

    damp: float | None = Field(default=None, gt=0, lt=1)
    act_order: bool | Literal["groups"] = "groups"
    mse: float = Field(default=0.0, ge=0)

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """Whether the package is there, and one of the releases that were tried."""
        found = installed()
        if found is None:
            yield rqat.Problem(MISSING, INSTALL, "method")
        elif not found.startswith(TRIED):
            text = f"gptqmodel {found} is installed; {TRIED}x was tried, and its insides change."
            yield rqat.Problem(text, INSTALL, "method", level="warning")


MISSING = "the package gptqmodel is not installed, whose GPTQ this is."
INSTALL = "Run: pip install 'rqat[gptqmodel]'; rqat's own is `gptq`."


def installed() -> str | None:
    """The version of the package gptqmodel; None where it is not installed."""
    try:
        return version("gptqmodel")
    except PackageNotFoundError:
        return None


@rqat.hookimpl
def register_quantizers(register: rqat.RegisterQuantizer) -> None:
    """The card of `gptqmodel`."""
    register(
        "gptqmodel",
        options=Options,
        load=".solver:GptqModel",
        needs=("hessian",),
        summary="GPTQModel's GPTQ, by its package, on rqat's statistics",
        paper="2210.17323",
    )
