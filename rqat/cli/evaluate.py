"""`rqat eval`: one task on one model, ours or any that lm-eval knows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RqatError, RunError
from ..figures import percent, seconds
from ..storage import explained, read_json, write_json
from . import display, options
from .beside import WORK, run_in, work_beside
from .device import Device
from .values import pairs

if TYPE_CHECKING:
    from ..plan import Plan
    from ..problems import KeyPath
    from ..registry import Registry

OWN_FILES = frozenset({"results.json", "samples.jsonl"})


def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task of a plugin, or any task of lm-eval.")],
    model: options.Model,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="File to read the problems from.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first problems only.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Completions generated together.")] = 32,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the task, e.g. temperature=0.6.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="[default: results/<task>-<model>]")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What a task that compares models (kl) compares with: before quantization."),
    ] = None,
    backend: options.Backend = "auto",
    device: Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate a model on a task. The model may be an original, a quantized or an exported one, or a step of a run."""
    from ..keys import ModelKeys
    from ..stages.evaluate.command import eval_plan, task_keys
    from .plan import check, check_data

    if task.startswith("builtin:") or (Path(task) / "config.json").is_file():
        raise RqatError(f"'{task}' is a model; the task comes first.", hint=f"rqat eval {model} {task}")
    raw = pairs(changes or [], "--set") | ({} if data is None else {"data": data})
    own = {"limit": limit, "batch": batch, "backend": backend, "original": original}
    keys = task_keys(context.obj.registry, task, raw, **own)
    flags: dict[KeyPath, str] = {("evaluate", 0, key): f"--set {key}" for key in raw}
    flags |= {("evaluate", 0, key): f"--{key}" for key in ("data", "original", "limit", "batch", "backend")}
    plan = eval_plan(
        context.obj.registry,
        ModelKeys(path=model, revision=revision, trust_remote_code=trust_remote_code),
        [keys],
        flags=flags,
    )
    folder = out or Path("results") / f"{_slug(task)}-{_slug(model)}"
    _refuse_foreign(folder)
    told = check(plan, folder, offline=context.obj.offline, notes=False)
    check_data(plan, folder, context.obj.registry, fresh=True, offline=context.obj.offline)
    found = _run(plan, folder, context.obj.registry, offline=context.obj.offline)
    found["told"] = told
    results = {"model": model, **found, "options": raw, "limit": limit} | ({"original": original} if original else {})
    write_json(folder / "results.json", results)
    if "figures" in results and original is None:
        display.note("Compared with itself; --original names the model before quantization.")
    if as_json:
        display.print_json(results)
    else:
        _show(results)
    display.note(f"Wrote {folder / 'results.json'} and {folder / 'samples.jsonl'}")


def _run(plan: Plan, out: Path, registry: Registry, *, offline: bool) -> dict[str, Any]:
    """Evaluates beside `out`, where an interrupted evaluation resumes, and moves the samples there; the figures."""
    with work_beside(out, worth_keeping="*.partial/.resume/*.jsonl") as work:
        job = run_in(work, plan, registry, offline=offline)
        made = job.result_of(plan.steps[-1].name)
        results: dict[str, Any] = read_json(made / "results.json")
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / "samples.jsonl", out / "samples.jsonl")
        return results


def _show(results: Mapping[str, Any]) -> None:
    if "figures" in results:
        _show_comparison(results)
        return
    interval = f"{percent(results['low'])} to {percent(results['high'])}"
    rows = [
        ("accuracy", f"{percent(results['accuracy'])}, 95 % interval {interval} ({results['interval']})"),
        (
            "problems",
            f"{results['n']}, each {len(results['seeds'])} times"
            if len(results.get("seeds", "")) > 1
            else results["n"],
        ),
    ]
    if "metric" in results:
        rows.append(("metric", results["metric"]))
    if "truncated" in results:
        rows += [
            ("correct", results["correct"]),
            ("unverifiable", results["unverifiable"]),
            ("cut off", percent(results["truncated"])),
            ("looping", percent(results["repetition"])),
            ("tokens", f"{results['mean_tokens']:.0f} on average"),
        ]
    _print(f"{results['task']} on {results['model']}", [*rows, ("time", seconds(results["seconds"]))])


def _show_comparison(results: Mapping[str, Any]) -> None:
    original = f" beside {results['original']}" if "original" in results else ""
    rows = [(name, f"{value:.6g}") for name, value in results["figures"].items()]
    rows += [("rows", f"{results['n']} of {results['data']}, {results['tokens']} tokens counted")]
    _print(f"{results['task']} of {results['model']}{original}", [*rows, ("time", seconds(results["seconds"]))])


def _print(title: str, rows: Sequence[tuple[str, Any]]) -> None:
    typer.echo(display.harmless(title))
    for name, value in rows:
        typer.echo(f"  {name:<14}{display.harmless(str(value))}")


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds anything but earlier results."""
    if folder.is_file():
        raise RunError(f"'{folder}' is a file.", hint="Choose a folder with -o.")
    foreign = [path.name for path in folder.iterdir() if path.name not in (*OWN_FILES, WORK)] if folder.is_dir() else []
    if foreign:
        raise RunError(
            f"'{folder}' holds '{foreign[0]}', which is no evaluation's.", hint="Choose another folder with -o."
        )


def _slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")
