"""`rqat qat`: runs a whole recipe: calibrate, quantize, train, export, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import display, options

if TYPE_CHECKING:
    pass


def qat(
    context: typer.Context,
    name: Annotated[str, typer.Option("--recipe", "-r", metavar="RECIPE", help="Name of a recipe, or a file.")],
    changes: options.Changes = None,
    out: options.RunFolder = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what the folder holds and start over.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run a recipe; what its run folder holds already is not done again."""
    from ..job import Job
    from ..pipeline import run_pipeline
    from ..plan import build_plan
    from ..recipe import load_recipe
    from .models import default_device
    from .plan import check

    plan = build_plan(load_recipe(name, changes or ()), context.obj.registry)
    folder = out or Path("runs") / plan.recipe.name
    device = default_device()
    display.note(
        f"{plan.recipe.name}: {plan.model.path} at {plan.scheme}, {len(plan.steps)} steps, in {folder}, on {device}"
    )
    check(plan, folder, device=device, offline=context.obj.offline)
    job = Job(plan, folder, context.obj.registry, device=device, offline=context.obj.offline, progress=display.Bars())
    outcome = run_pipeline(job, fresh=fresh)
    if not outcome.ran:
        display.note("Finished already; nothing to do (--fresh starts over).")
    elif outcome.skipped:
        display.note(f"Done already: {', '.join(outcome.skipped)}.")
    if as_json:
        display.print_json(outcome.summary)
    else:
        show_summary(outcome.summary)
        display.note(f"Report: {folder / 'report.html'}")


def show_summary(summary: dict[str, Any]) -> None:
    """The table of a finished run: every arm's accuracy, and what training gained."""
    raise NotImplementedError
