"""Multi-step arithmetic word problems: the source and the task `arith`, and the tiny reasoner trained on them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

import rqat

Steps = Annotated[int, Field(ge=1, le=50)]


class SourceOptions(rqat.Options):
    """Options of the source `arith`.

    Attributes:
        steps: smallest and largest number of equations in a solution; by default problems fit in 256 tokens.
            The tiny reasoner was trained on 1 to 24.
        rows: number of problems; the generator itself has no end.
    """

    steps: tuple[Steps, Steps] = (1, 12)
    rows: Annotated[int, Field(ge=1)] = 20_000

    @model_validator(mode="after")
    def _in_order(self) -> SourceOptions:
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"steps {list(self.steps)}: the smaller number comes first")
        return self


class ArithOptions(rqat.TaskOptions):
    """Options of the task `arith`.

    Attributes:
        steps: smallest and largest number of equations in a solution; up to 24 are asked in the quickstart,
            which needs `max_new_tokens: 320`.
        problems: number of problems, always the same ones.
    """

    steps: tuple[Steps, Steps] = (8, 12)
    problems: Annotated[int, Field(ge=1)] = 300
    max_new_tokens: Annotated[int, Field(ge=1)] = 192

    @model_validator(mode="after")
    def _in_order(self) -> ArithOptions:
        if self.steps[0] > self.steps[1]:
            raise ValueError(f"steps {list(self.steps)}: the smaller number comes first")
        return self


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    """The card of the source."""
    register(
        "arith",
        options=SourceOptions,
        load=".source:Arith",
        summary="multi-step arithmetic word problems, made by a seeded generator",
        domain="math",
    )


@rqat.hookimpl
def register_tasks(register: rqat.RegisterTask) -> None:
    """The card of the task."""
    register(
        "arith",
        options=ArithOptions,
        load=".task:ArithTask",
        summary="multi-step arithmetic word problems, graded by their boxed number",
        domain="math",
    )
