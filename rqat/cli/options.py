"""Options that several commands share, each written once."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import RqatError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub name, builtin:NAME, or a step of a run.")]


def recipes_beginning(incomplete: str) -> list[str]:
    """Names of recipes, and files and folders, that begin so: for the shell to complete."""
    from ..recipe import shipped_recipes

    paths = sorted(Path().glob(f"{glob.escape(incomplete)}*")) if not incomplete.startswith(("/", "~")) else []
    files = [f"{path}{os.sep if path.is_dir() else ''}" for path in paths if path.is_dir() or path.suffix == ".yaml"]
    return [*(name for name in shipped_recipes() if name.startswith(incomplete)), *files]


def one_recipe(argument: str | None, option: str | None, command: str) -> str:
    """The recipe of a command that takes it as an argument or as an option.

    Raises:
        RqatError: there is none, or one each.
    """
    if argument and option:
        what = f"'{argument}' and --recipe {option}: a run has one recipe."
    elif found := argument or option:
        return found
    else:
        what = "Which recipe?"
    raise RqatError(what, hint=f"rqat {command} quickstart; `rqat recipes ls` lists recipes.")


_RECIPE = typer.Argument(metavar="RECIPE", help="Name of a recipe, or a file.", autocompletion=recipes_beginning)
RecipeName = Annotated[str, _RECIPE]
RecipeOrNone = Annotated[str | None, _RECIPE]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", metavar="RECIPE", help="The same, as an option.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. train.0.lr=1e-5.")
]
RunFolder = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Run folder.  [default: runs/<recipe's name>]")
]
Backend = Annotated[
    Literal["auto", "transformers", "packed"],
    typer.Option(
        help="auto: rqat's engine on CUDA for the families it knows, else transformers; packed: compute on packed "
        "weights, for exported checkpoints and steps of runs."
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="What is computed in; auto: float32 on the CPU, bfloat16 on CUDA."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes", min=0, metavar="N", help="Train and evaluate in N processes, one per GPU; 0: all GPUs."
    ),
]
