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

Every `register` takes
    name: what a recipe or the command line calls it.
    options: its options, a subclass of `rqat.Options` (`rqat.TaskOptions` for tasks).
    load: where its class is: `".submodule:Class"`, relative to the plugin's package, or `":Class"` of its own module.
    summary: one line for `rqat plugins ls`.
    paper: arXiv id, if it comes from one.
and what its kind needs beside. A module may say `RQAT_API = 1`: which contract it was written for (`rqat.API`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pluggy

from .contracts import Options, Statistic, TaskOptions

if TYPE_CHECKING:
    import typer

API = 1
"""Version of the contract between rqat and its plugins: hooks, what `register` takes, and the classes behind `load`."""

OLDEST_API = 1
"""Oldest contract that plugins may still be written for."""

PROJECT = "rqat"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """What every `register` takes; the `register` of each hook is one of the protocols below."""

    def __call__(
        self, name: str, *, load: str, options: type[Options] = Options, summary: str = "", paper: str = ""
    ) -> None: ...


class RegisterQuantizer(Protocol):
    """Registers a quantizer.

    Args:
        needs: the statistics its class collects, the same as `Quantizer.needs`.
        grids: names of the grids it can fit; None is any, by way of `rqat.grid_of`.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        needs: Sequence[Statistic] = (),
        grids: Sequence[str] | None = ("uniform",),
    ) -> None: ...


class RegisterGrid(Protocol):
    """Registers a grid.

    Args:
        options: nothing sets them; their `check` says what stands against a scheme on this model.
        bits: widths there are.
        zero_bits: what a stored zero point takes; 0 where all groups share a fixed one. None is as many as a code has,
            or none in a symmetric scheme.
        slower: without kernels of its own: about how many times longer an optimizer step takes; 1 with kernels.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        bits: Sequence[int] = (2, 3, 4, 8),
        slower: float = 9.0,
        zero_bits: int | None = None,
    ) -> None: ...


class RegisterTransform(Register, Protocol):
    """Registers a transform of whole models.

    Args:
        hooks: it adds forward hooks (`attach`), so that no checkpoint format holds all of it.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        hooks: bool = False,
    ) -> None: ...


class RegisterObjective(Protocol):
    """Registers an objective.

    Args:
        teacher: it learns from a teacher, by default the model before quantization: always, or where one of the named
            options is set (`teacher=("kd_weight",)`).
        writes: it learns from completions that it writes itself: rows need a prompt and nothing else.
        graded: it is trained on rewards: where one counts, the recipe needs a task, rows an answer, and the cold-start
            gate stands before.
        logits: how its loss holds logits `(tokens, vocabulary)`, for the estimate of its memory: "float32" widens them,
            "model" leaves them in the model's dtype, "chunks" never has more than a chunk of them.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        teacher: bool | tuple[str, ...] = False,
        writes: bool = False,
        graded: bool = False,
        logits: str = "float32",
    ) -> None: ...


class RegisterReward(Protocol):
    """Registers a reward."""

    def __call__(
        self, name: str, *, load: str, options: type[Options] = Options, summary: str = "", paper: str = ""
    ) -> None: ...


class RegisterSource(Protocol):
    """Registers a source of rows.

    Args:
        domain: what the rows are about ("math", "text"), for the domain check of `rqat plan`.
        model: it asks for the model before quantization, in a step of its own: see `rqat.Source.produce`.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        domain: str = "",
        model: bool = False,
    ) -> None: ...


class RegisterTask(Protocol):
    """Registers a task.

    Args:
        domain: what the problems are about.
        compares: of a task that compares a model with its original (`rqat.Comparison`): the figures it finds, of which
            less is better, the most telling first.
        longest_prompt: tokens of the longest problem as it is asked, for estimates of memory; 0 where nobody knows.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[TaskOptions] = TaskOptions,
        summary: str = "",
        paper: str = "",
        domain: str = "",
        compares: Sequence[str] = (),
        longest_prompt: int = 0,
    ) -> None: ...


class RegisterExporter(Protocol):
    """Registers a checkpoint format.

    Args:
        grids: names of the grids it can write; None is any, by way of `rqat.grid_of`.
        embedding: it packs a quantized embedding, too (a tied pair of embedding and head is one). Without it, the
            format is given the values of such an embedding as a tensor of 16 bits, and `rqat plan` says so.
    """

    def __call__(
        self,
        name: str,
        *,
        load: str,
        options: type[Options] = Options,
        summary: str = "",
        paper: str = "",
        grids: Sequence[str] | None = ("uniform",),
        embedding: bool = False,
    ) -> None: ...


@hookspec
def register_quantizers(register: RegisterQuantizer) -> None:
    """Offers quantizers: `rqat.Quantizer`, named by `quantize.method`."""


@hookspec
def register_grids(register: RegisterGrid) -> None:
    """Offers grids: `rqat.Grid`, named by a scheme's ending (`w2g128-seq`)."""


@hookspec
def register_transforms(register: RegisterTransform) -> None:
    """Offers changes of a whole model before calibration: `rqat.Transform`, named in front of a quantizer."""


@hookspec
def register_objectives(register: RegisterObjective) -> None:
    """Offers training objectives: `rqat.Objective`, named by `train[].objective`."""


@hookspec
def register_rewards(register: RegisterReward) -> None:
    """Offers rewards: `rqat.Reward`, named and weighted by `train[].rewards`."""


@hookspec
def register_sources(register: RegisterSource) -> None:
    """Offers calibration and training data: `rqat.Source`, named by `calibration.source` and `train[].data.source`."""


@hookspec
def register_tasks(register: RegisterTask) -> None:
    """Offers evaluation tasks: `rqat.Task`, named by `evaluate[].task` and `rqat eval TASK`."""


@hookspec
def register_exporters(register: RegisterExporter) -> None:
    """Offers checkpoint formats: `rqat.Exporter`, named by `export.format`."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Adds commands to the `rqat` command line: call `app.command()` or `app.add_typer()`."""
