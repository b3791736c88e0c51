"""`rqat sweep`: one recipe with many values of some keys; steps that cells share run once."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RqatError, RunError
from ..figures import few, seconds, size
from . import display, options

if TYPE_CHECKING:
    from ..sweep.cells import Cell, Sweep
    from ..sweep.controller import Folders
    from ..sweep.executors import Executor

FAILED = 2
"""Exit code when a cell has failed; the others have run."""


def sweep(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep's YAML file.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the cells, what they share and cost; run nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="[default: runs/<sweep's name>]")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Cells that run side by side; GPUs are shared out.  [default: one per GPU, or one]"),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run cells as jobs through submitit: slurm, or local.")
    ] = None,
    changes: options.Changes = None,
    as_json: options.Json = False,
) -> None:
    """Run a recipe with many values of some keys. Runs only what is missing, and what cells share once."""
    from ..sweep.cells import load_sweep
    from ..sweep.controller import Controller, Folders
    from ..sweep.results import table_of, write_results

    made = load_sweep(file, context.obj.registry, changes or ())
    folders = Folders(out or Path("runs") / made.name)
    _refuse_foreign(folders.root)
    _check(made, folders, offline=context.obj.offline)
    if plan:
        _show_plan(made, folders, as_json=as_json)
        return
    executor = _executor(made, folders, jobs, cluster)
    display.note(f"{made.name}: {len(made.cells)} cells in {folders.root}, {executor.places} side by side")
    controller = Controller(made, folders, executor, context.obj.registry, display.note, offline=context.obj.offline)
    try:
        controller.run()
    finally:
        states = {cell.name: controller.state(cell) for cell in made.cells}
        if folders.root.is_dir():
            rows = write_results(made, folders, states)
    columns, body = table_of(made, rows)
    if as_json:
        found = [{"cell": row.cell.name, **row.cell.values, "state": row.state, **row.figures} for row in rows]
        display.print_json(found)
    else:
        display.table(columns, body, title=made.name)
    display.note(f"Wrote {folders.root / 'sweep.csv'} and {folders.root / 'sweep.html'}")
    if controller.failed:
        names = ", ".join(controller.failed)
        raise RunError(
            f"{len(controller.failed)} of {len(made.cells)} cells failed: {names}.",
            hint=f"{folders.logs} says why; the same command tries them again.",
        )


def _executor(made: Sweep, folders: Folders, jobs: int | None, cluster: str | None) -> Executor:
    """What runs the cells."""
    from ..sweep.executors import Local, Submitit
    from .device import likely_device

    if cluster is not None:
        return Submitit(folders.logs, jobs or len(made.cells), cluster, made.slurm)
    gpus: list[str] = []
    if likely_device() == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = [name.strip() for name in visible.split(",")] if visible else list(map(str, range(_gpus())))
    return Local(folders.logs, _places(made, jobs or max(1, len(gpus)), len(gpus)), gpus)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _places(made: Sweep, asked: int, gpus: int) -> int:
    """How many of so many cells fit into memory side by side; each looks at what is free, but all start at once."""
    if asked <= max(1, gpus):
        return asked
    there = _memory(gpus)
    most = max((memory for cell in made.cells for memory, _ in _needs(cell).values()), default=0)
    if not there or not most:
        return asked
    fit = max(1, there // most) * max(1, gpus)
    if fit < asked:
        where = "a GPU has" if gpus else "there are"
        display.note(f"--jobs {asked}: only {fit}, since a cell takes about {size(most)} and {where} {size(there)}.")
    return min(asked, fit)


def _memory(gpus: int) -> int | None:
    """Of the smallest GPU, or what the system has free; None where it does not say."""
    from ..model.memory import available_bytes

    if not gpus:
        return available_bytes()
    import torch

    return min(torch.cuda.get_device_properties(number).total_memory for number in range(gpus))


def _check(made: Sweep, folders: Folders, *, offline: bool) -> None:
    """Looks for everything that would stop a cell later.

    Raises:
        RqatError: every error of every cell, each once.
    """
    from ..preflight import preflight
    from .device import likely_device
    from .plan import show_finding

    found: dict[Any, list[str]] = {}
    for cell in made.cells:
        for finding in preflight(cell.plan, folder=folders.cell(cell), offline=offline, device=likely_device()):
            if finding.level != "note":
                found.setdefault(finding, []).append(cell.name)
    errors = [(finding, names) for finding, names in found.items() if finding.level == "error"]
    shown: set[str] = set()
    for finding in (finding for finding in found if finding.level != "error" and finding.about not in shown):
        alike = [name for one, names in found.items() if one.about == finding.about for name in names]
        if finding.about and len(alike) > 1:
            finding = replace(finding, text=f"{finding.text} ({few(alike, 1)} cells)")
        shown |= {finding.about} - {""}
        show_finding(finding)
    if errors:
        lines = [f"{finding.text} {finding.hint} (cell {few(names, 1)})" for finding, names in errors]
        raise RqatError("\n  ".join([f"{len(lines)} things stand in the way:", *lines]) if lines[1:] else lines[0])


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds anything but a sweep."""
    ours = {"cells", "logs", "stopped.json", "sweep.csv", "sweep.html"}
    foreign = (
        [path.name for path in folder.iterdir() if path.name not in ours and path.name[0] != "."]
        if folder.is_dir()
        else []
    )
    if folder.is_file() or foreign:
        what = f"holds '{foreign[0]}', which is no sweep's" if foreign else "is a file"
        raise RunError(f"'{folder}' {what}.", hint="Choose another folder with -o.")


def _show_plan(made: Sweep, folders: Folders, *, as_json: bool) -> None:
    """Every cell with its steps: which are there, which another cell makes first, and what the rest takes."""
    from ..stage import bare_name
    from ..sweep.shared import pool

    there = pool(folders.cell(cell) for cell in made.cells)
    took = _seconds(there)
    made_by: dict[str, str] = {}
    cells: list[dict[str, Any]] = []
    for cell in made.cells:
        states: dict[str, str] = {}
        for name, fingerprint in cell.prints.items():
            first = made_by.setdefault(fingerprint, cell.name)
            states[name] = "done" if fingerprint in there else "runs" if first == cell.name else f"from {first}"
        needs = _needs(cell)
        running = [name for name, state in states.items() if state == "runs"]
        known = [took[bare_name(name)] for name in running if bare_name(name) in took]
        cells.append(
            {
                "cell": cell.name,
                "steps": states,
                "disk_bytes": sum(needs[name][1] for name in running if name in needs),
                "memory_bytes": max((needs[name][0] for name in running if name in needs), default=0),
                "seconds": sum(known) if len(known) == len(running) else None,
            }
        )
    if as_json:
        display.print_json(cells)
        return
    rows = []
    for each in cells:
        counts = Counter("shared" if state.startswith("from ") else state for state in each["steps"].values())
        runs = ", ".join(name for name, state in each["steps"].items() if state == "runs")
        time = "-" if each["seconds"] is None else seconds(each["seconds"])
        disk, memory = size(each["disk_bytes"]), size(each["memory_bytes"])
        rows.append((each["cell"], runs or "-", counts["shared"], counts["done"], disk, memory, time))
    columns = ("cell", "runs", "shared", "done", "disk", "memory", "time")
    display.table(columns, rows, title=f"{made.name}: {made.recipe}")
    steps = sum(len(cell.prints) for cell in made.cells)
    todo = sum(1 for fingerprint in made_by if fingerprint not in there)
    typer.echo(f"{len(made.cells)} cells of {steps} steps in all; {len(made_by)} are different, {todo} are to be run.")
    if made.stop:
        rule = made.stop
        typer.echo(
            f"After {rule.after} optimizer steps a cell is stopped whose watched {rule.figure} is more than "
            f"{rule.factor:g} times the best at the same step."
        )


def _needs(cell: Cell) -> dict[str, tuple[int, int]]:
    """Memory and disk of a cell's steps, in bytes."""
    from ..capacity import estimate
    from ..model.config import read_config
    from .device import likely_device

    found = estimate(cell.plan, read_config(cell.plan.model, offline=True), likely_device(), offline=True)
    return {one.step: (one.memory_bytes, one.disk_bytes) for one in found}


def _seconds(there: dict[str, Path]) -> dict[str, float]:
    """What finished steps have taken on average, by name without number."""
    from ..run_folder import MANIFEST
    from ..stage import bare_name
    from ..storage import read_json

    taken: dict[str, list[float]] = {}
    for path in there.values():
        manifest = read_json(path / MANIFEST) or {}
        taken.setdefault(bare_name(manifest["step"]), []).append(float(manifest["seconds"]))
    return {name: sum(values) / len(values) for name, values in taken.items()}
