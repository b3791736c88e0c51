"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub name, builtin:NAME, or a step of a run.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a file.")]
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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")
]
