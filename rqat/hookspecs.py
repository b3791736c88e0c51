"""Every hook a plugin can implement, on one screen.

A plugin is a module (or package) with functions marked `@rqat.hookimpl`; each gets a `register` callback and calls it
once per thing it offers. Names and options are read at start-up; the class behind `load` is imported only when used,
so a plugin's module must not import torch.

    import rqat

    class Options(rqat.Options):
        damp: float = 0.01

    @rqat.hookimpl
    def register_quantizers(register):
        register("acme", options=Options, load=".solver:Acme", summary="GPTQ with our column order")

`load` is `".submodule:Class"`, relative to the plugin's package, or `":Class"` for a class of the plugin's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import pluggy

from .contracts import Options, Statistic
from .scheme import Scheme

if TYPE_CHECKING:
    import typer

PROJECT = "rqat"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """The callback a hook receives: registers one thing under `name`.

    Args:
        name: what a recipe or the command line calls it.
        options: its options, a subclass of `rqat.Options` (`rqat.TaskOptions` for tasks).
        load: where its class is.
        summary: one line for `rqat plugins ls`.
        paper: arXiv id, if it comes from one.
        teacher: objectives only: it learns from a teacher, by default the model before quantization.
        rollouts: objectives only: it learns from its own completions, so the cold-start gate stands before it.
        needs: quantizers only: the statistics its class collects ("hessian", "absmean"), the same as `Quantizer.needs`.
        domain: sources and tasks only: what the rows are about ("math", "text"), for the domain check of `rqat plan`.
        refuses: exporters only: says why a scheme cannot be written, or returns "".
    """

    def __call__(
        self,
        name: str,
        *,
        options: type[Options] = Options,
        load: str,
        summary: str = "",
        paper: str = "",
        teacher: bool = False,
        rollouts: bool = False,
        needs: Sequence[Statistic] = (),
        domain: str = "",
        refuses: Callable[[Scheme], str] | None = None,
    ) -> None: ...


@hookspec
def register_quantizers(register: Register) -> None:
    """Offers quantizers: `rqat.Quantizer`, named by `quantize.method`."""


@hookspec
def register_objectives(register: Register) -> None:
    """Offers training objectives: `rqat.Objective`, named by `train[].objective`."""


@hookspec
def register_sources(register: Register) -> None:
    """Offers calibration and training data: `rqat.Source`, named by `calibration.source` and `train[].data.source`."""


@hookspec
def register_tasks(register: Register) -> None:
    """Offers evaluation tasks: `rqat.Task`, named by `evaluate[].task` and `rqat eval TASK`."""


@hookspec
def register_exporters(register: Register) -> None:
    """Offers checkpoint formats: `rqat.Exporter`, named by `export.format`."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Adds commands to the `rqat` command line: call `app.command()` or `app.add_typer()`."""
