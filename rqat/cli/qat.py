"""`rqat qat`: runs a whole recipe: calibrate, quantize, train, export, evaluate, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..figures import percent
from ..quiet import only_our_bars
from . import display, options
from .device import Device


def qat(
    context: typer.Context,
    recipe: options.RecipeOrNone = None,
    name: options.RecipeOption = None,
    changes: options.Changes = None,
    out: options.RunFolder = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away what the folder holds and start over.")] = False,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STEP", help="Stop after this step, e.g. train-kd.")
    ] = None,
    redo: Annotated[
        list[str] | None,
        typer.Option("--redo", metavar="STEP", help="Do this step again, and what depends on it; repeatable."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option("--log", metavar="TRACKER", help="Tell tensorboard, trackio or wandb, too; repeatable."),
    ] = None,
    processes: options.Processes = 1,
    node: Annotated[
        str, typer.Option("--node", metavar="K/N", help="This is machine K, from 0 on, of N with one shared folder.")
    ] = "",
    rendezvous: Annotated[
        str, typer.Option("--rendezvous", metavar="HOST:PORT", help="Where the others find machine 0.")
    ] = "",
    device: Device = None,
    as_json: options.Json = False,
) -> None:
    """Run a recipe. What its run folder holds already is not done again; what belongs to another plan is set aside."""
    from ..model.memory import importing
    from ..nodes import Nodes
    from ..plan import build_plan
    from ..recipe import load_recipe
    from ..run_folder import step_called
    from .plan import check, check_data

    asked = options.one_recipe(recipe, name, "qat")
    plan = build_plan(load_recipe(asked, [*(changes or ()), *_logged(log)]), context.obj.registry)
    folder = out or Path("runs") / plan.recipe.name
    last = step_called(plan, until, "--until") if until else ""
    again = [step_called(plan, step, "--redo") for step in redo or ()]
    workers, nodes = processes or _all_gpus(), Nodes.parse(node, rendezvous)
    display.note(f"{plan.recipe.name}: {plan.model.path} at {plan.spelled}, {len(plan.steps)} steps, in {folder}")
    together = workers * nodes.count
    offline = context.obj.offline
    told = check(plan, folder, offline=offline, fresh=fresh, processes=together, machines=nodes.count)
    of_data = check_data(plan, folder, context.obj.registry, fresh=fresh, offline=offline)
    from ..job import Job
    from ..pipeline import follow, run_pipeline

    with importing():  # where all is done torch has not been imported yet
        from ..model.devices import device_to_work_on

        used = device_to_work_on()
    display.note(f"Device: {used}{_others(used, together)}")
    only_our_bars()
    job = Job(
        plan,
        folder,
        context.obj.registry,
        device=used,
        offline=context.obj.offline,
        progress=display.Bars(),
        workers=workers,
        nodes=nodes,
        told=told,
        told_of_data=of_data,
    )
    if nodes.rank:
        joined = follow(job)
        display.note(f"The run has ended; joined: {', '.join(joined) or 'nothing'}.")
        return
    outcome = run_pipeline(job, fresh=fresh, until=last, redo=again)
    if not outcome.ran:
        display.note("Finished already; nothing to do (--fresh starts over).")
    elif outcome.skipped:
        display.note(f"Done already: {', '.join(outcome.skipped)}.")
    if as_json:
        display.print_json(outcome.summary)
    else:
        show_summary(outcome.summary)
    for checkpoint in filter(Path.is_dir, plan.checkpoints(folder)):
        display.note(f"Checkpoint: {checkpoint}")
    display.note(f"Report: {folder / 'report.html'}")


def _logged(trackers: Sequence[str] | None) -> list[str]:
    """What `--log` stands for."""
    return [f"log={json.dumps(trackers)}"] if trackers else []


def _all_gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _others(device: str, workers: int) -> str:
    """What is to be said of the other devices."""
    if workers > 1:
        return f", {workers} processes work together"
    if device != "cuda":
        return ""
    there = _all_gpus()
    return f", one of {there}; all work with --processes {there}" if there > 1 else ""


def show_summary(summary: Mapping[str, Any]) -> None:
    """The tables of a finished run, one per task: how every model did, and which differences are shown.

    Then one per comparison with the original: how far from it every model is.
    """
    columns = ("model", "accuracy", "95 % interval", "n", "cut off", "seconds")
    for task, variants in summary["tasks"].items():
        rows = []
        for variant, found in variants.items():
            interval = f"{percent(found['low'])} to {percent(found['high'])}"
            cut_off = percent(found["truncated"]) if "truncated" in found else "-"
            rows.append(
                (variant, percent(found["accuracy"]), interval, found["n"], cut_off, round(found["seconds"], 1))
            )
        display.table(columns, rows, title=task)
        for pair in summary["paired"]:
            if pair["task"] == task:
                low, high = (f"{100 * pair[end]:+.1f}" for end in ("low", "high"))
                display.line(
                    f"{pair['variant']} against {pair['against']}: {100 * pair['difference']:+.1f} points "
                    f"({low} to {high}, p = {pair['p']:.2g}): {pair['says']}"
                )
    for label, variants in summary.get("compared", {}).items():
        names = list(next(iter(variants.values()))["figures"])
        compared = [
            (variant, *(f"{found['figures'][name]:.4g}" for name in names), found["n"], found["tokens"])
            for variant, found in variants.items()
        ]
        display.table(("model", *names, "rows", "tokens counted"), compared, title=label)
