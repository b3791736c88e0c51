"""`rqat report`: writes a run's report anew, whether the run is finished, stopped or going on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DiskError, RunError


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
) -> None:
    """Write report.html of a run anew, from what lies in its folder now."""
    from ..report import write_report
    from ..report.planned import PLAN
    from ..run_folder import finished_steps, refuse_links

    refuse_links(folder)
    if not (folder / PLAN).is_file() and not finished_steps(folder):
        raise RunError(f"'{folder}' is no run.", hint="Name a run folder such as runs/quickstart.")
    try:
        typer.echo(write_report(folder))
    except DiskError:
        raise
    except RunError as error:
        raise RunError(error.message, hint="Copy the run to where you may write, and name the copy.") from error
