"""CAKLD (BitDistiller, arXiv 2402.10631, section 3.2): reverse and forward KL, mixed by the teacher's confidence."""

from __future__ import annotations

from pydantic import Field

import rqat


class Options(rqat.Options):
    """Options of `acme-cakld`.

    Attributes:
        gamma: share of the reverse KL; None is the teacher's mean probability of the data's tokens.
        rows: how many rows that mean is taken over.
    """

    gamma: float | None = Field(default=None, ge=0, le=1)
    rows: int = Field(default=32, ge=1)


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    register(
        "acme-cakld",
        options=Options,
        load=".objective:Cakld",
        summary="mixture of reverse and forward KL by the teacher's confidence",
        paper="2402.10631",
        teacher=True,
    )
