"""`rqat runs`: what lies in run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunError
from . import display


def app() -> typer.Typer:
    """The `runs` commands."""
    runs = typer.Typer(no_args_is_help=True, help="Look after run folders.")
    runs.command("verify")(verify)
    return runs


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder, such as runs/quickstart.")],
) -> None:
    """Read every file of every finished step and compare it with the hash in the step's manifest; changes nothing."""
    from ..intact import verified
    from ..run_folder import finished_steps, refuse_links

    refuse_links(folder)
    steps = finished_steps(folder)
    if not steps:
        raise RunError(f"'{folder}' holds no finished step of a run.", hint="Name a folder such as runs/quickstart.")
    wrong = {step.name: found for step in steps if (found := verified(step))}
    for step in steps:
        found = wrong.get(step.name, [])
        display.note(f"{step.name}: {', '.join(found) + ' changed since it was written' if found else 'sound'}")
    if wrong:
        raise RunError(
            f"'{folder}': {len(wrong)} of {len(steps)} finished steps are not what was written: {', '.join(wrong)}.",
            hint="The command that made the run does them again, and sets aside what is there.",
        )
