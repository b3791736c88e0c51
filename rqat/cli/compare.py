"""`rqat compare`: evaluations side by side, tested in pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import RunError
from . import display, options


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT_OR_RUN...", help="Run folders, steps of runs, or folders that `rqat eval` wrote."
        ),
    ],
    task: Annotated[str, typer.Option("--task", metavar="TASK", help="Look at this task only.")] = "",
    against: Annotated[
        str, typer.Option(metavar="MODEL", help="Compare the others with this one.  [default: the first]")
    ] = "",
    format: Annotated[Literal["md", "csv", "json"], typer.Option(help="Markdown, CSV or JSON.")] = "md",
    as_json: options.Json = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write there, not to stdout.")] = None,
) -> None:
    """Compare evaluations: accuracy or distance with its interval, and which differences are shown pair by pair."""
    from ..report.comparison import FORMATS
    from ..report.comparison import compare as compared
    from ..storage import explained, write_text

    found = compared(paths, task=task, against=against)
    text = FORMATS["json" if as_json else format](found)
    for path in found["left_out"]:
        display.note(f"Left out, since not all were asked this: {path}")
    if out is None:
        typer.echo("\n".join(map(display.harmless, text.splitlines())))
        return
    if out.is_dir():
        raise RunError(f"'{out}' is a folder.", hint="Name a file with -o.")
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    display.note(f"Wrote {out}")
