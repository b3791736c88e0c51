"""A command: `rqat my-sizes FOLDER` says what takes up room in a folder."""

from pathlib import Path
from typing import Annotated

import typer

import rqat


@rqat.hookimpl
def register_commands(app: typer.Typer) -> None:
    @app.command("my-sizes")
    def my_sizes(folder: Annotated[Path, typer.Argument(help="Of a run, or an exported model.")]) -> None:
        """Show the sizes of a folder's files, largest first."""
        if not folder.is_dir():
            raise rqat.RqatError(f"'{folder}' is not a folder.", hint="Name a folder.")
        files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
        for path in files:
            typer.echo(f"{path.stat().st_size:>12}  {path.relative_to(folder)}")
