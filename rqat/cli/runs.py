"""`rqat runs`: what lies in run folders."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RunError
from ..figures import percent, size
from . import display, options


def app() -> typer.Typer:
    """The `runs` commands; `rqat runs` alone is `rqat runs ls`."""
    runs = typer.Typer(
        help="List run folders, and look after them.", invoke_without_command=True, rich_markup_mode=None
    )

    @runs.callback()
    def default(context: typer.Context, as_json: options.Json = False) -> None:
        if context.invoked_subcommand is None:
            ls(as_json=as_json)

    runs.command("ls")(ls)
    runs.command("verify")(verify)
    return runs


def ls(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the run folders are.")] = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """List runs: whether each is running, stopped or finished, its last figures, its size; the latest first."""
    from ..run_folder import finished_steps

    if not folder.is_dir():
        raise RunError(f"There is no folder '{folder}'.", hint="Name the folder that holds your run folders.")
    places = [folder] if finished_steps(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    found = [facts for path in places if (facts := facts_of(path))]
    found.sort(key=lambda facts: facts["changed"], reverse=True)
    if as_json:
        display.print_json(found)
        return
    rows = [
        [
            *(one["run"], one["state"], f"{one['steps']} of {one['planned']}", one["last"], size(one["bytes"])),
            one["changed"].replace("T", " "),
        ]
        for one in found
    ]
    if not rows:
        display.note(f"No runs in '{folder}'.")
        return
    display.table(("run", "state", "steps", "last figures", "size", "changed"), rows)


def facts_of(folder: Path) -> dict[str, Any] | None:
    """What there is to say of a run folder, at a glance; None where it is none."""
    from ..report.planned import PLAN
    from ..run_folder import SUMMARY, finished_steps, unfinished_steps
    from ..run_lock import is_held
    from ..storage import read_json, size_of

    done, begun, summary = finished_steps(folder), unfinished_steps(folder), read_json(folder / SUMMARY)
    if not done and not begun:
        return None
    steps = [*done, *begun]
    changed = max(path.stat().st_mtime for step in steps for path in (step, *step.glob("*.json*")))
    plan = read_json(folder / PLAN)
    planned = len(steps_of) if isinstance(plan, dict) and isinstance(steps_of := plan.get("steps"), list) else len(done)
    # `--until` leaves a summary, too, of what there is.
    whole = isinstance(summary, dict) and len(done) >= planned
    state = "running" if is_held(folder) else "finished" if whole else "stopped"
    return {
        "run": str(folder),
        "state": state,
        "steps": len(done),
        "planned": max(planned, len(done)),
        "last": (_scores(summary) if state == "finished" else "") or _last(steps),
        "bytes": size_of(folder),
        "changed": datetime.fromtimestamp(changed).isoformat(timespec="minutes"),
    }


def _scores(summary: Any) -> str:
    """How the last model of a finished run does on its first task."""
    variants = summary.get("variants") if isinstance(summary, dict) else None
    if not isinstance(variants, dict) or not variants:
        return ""
    name, figures = list(variants.items())[-1]
    accuracy = figures.get("accuracy") if isinstance(figures, dict) else None
    return f"{name} {percent(accuracy)} on {summary.get('task')}" if isinstance(accuracy, float) else ""


def _last(steps: list[Path]) -> str:
    """The step that a run has come to, with the figures of its last optimizer step."""
    from ..storage import PARTIAL, read_json_lines

    name = steps[-1].name.removesuffix(PARTIAL)
    lines = read_json_lines(steps[-1] / "training.jsonl")
    if not lines:
        return name
    line = lines[-1]
    figure = next((f", {key} {line[key]:.4g}" for key in ("reward", "loss") if isinstance(line.get(key), float)), "")
    return f"{name}: step {line.get('step')}{figure}"


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
