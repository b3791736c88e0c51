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
from .device import Device, visible_gpus
from .values import pairs

if TYPE_CHECKING:
    from ..plan import Plan
    from ..problems import KeyPath
    from ..registry import Registry

OWN_FILES = frozenset({"results.json", "samples.jsonl"})


PRESETS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "seeds": [42]},
    "quick": {"temperature": 0.0, "seeds": [42], "max_new_tokens": 2048},
    "paper": {"temperature": 0.6, "top_p": 0.95, "seeds": [42, 43, 44], "max_new_tokens": 32_768},
}
"""Options of a task by one word; `paper` is the protocol of arXiv 2504.04823. What `--set` says goes before them."""

QUICK_LIMIT = 100
"""Problems that `--quick` asks at most."""


def evaluate(
    context: typer.Context,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Tasks of plugins, or any task of lm-eval; several with commas.")
    ],
    model: options.Model,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="File to read the problems from.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first problems only.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Completions generated together.")] = 32,
    greedy: Annotated[bool, typer.Option("--greedy", help="Ask once, without sampling.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: 100 problems, greedy, at most 2,048 tokens each.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="As arXiv 2504.04823: temperature 0.6, top-p 0.95, 32,768 tokens, 3 seeds.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Tokens of a completion at most; as --set's.")
    ] = None,
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
    dtype: options.Dtype = "auto",
    processes: Annotated[
        int, typer.Option("--processes", min=0, metavar="N", help="Write in N processes, one per GPU; 0: all GPUs.")
    ] = 1,
    device: Device = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="Have a server with OpenAI's API write, e.g. http://localhost:8000/v1; of MODEL, which it serves, "
            "config and tokenizer are read.",
        ),
    ] = None,
    served_as: Annotated[
        str | None, typer.Option("--served-as", metavar="NAME", help="What the server calls the model.")
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate a model on tasks. The model may be an original, a quantized or an exported one, or a step of a run."""
    from ..keys import ModelKeys
    from ..stages.evaluate.command import eval_plan, task_keys
    from .plan import check, check_data

    registry = context.obj.registry
    if task.startswith("builtin:") or (Path(task) / "config.json").is_file():
        raise RqatError(f"'{task}' is a model; the task comes first.", hint=f"rqat eval {model} {task}")
    names = list(dict.fromkeys(name.strip() for name in task.split(",") if name.strip()))
    if not names:
        raise RqatError(f"'{task}' names no task.", hint="`rqat tasks` lists them.")
    preset = _preset({"greedy": greedy, "quick": quick, "paper": paper})
    said = pairs(changes or [], "--set")
    if max_new_tokens is not None:
        if "max_new_tokens" in said:
            raise RqatError("--max-new-tokens and --set max_new_tokens do not go together.", hint="Give one of them.")
        said = {**said, "max_new_tokens": max_new_tokens}
    raw = PRESETS.get(preset, {}) | said | ({} if data is None else {"data": data})
    limit = QUICK_LIMIT if limit is None and preset == "quick" else limit
    own = {"limit": limit, "batch": batch, "backend": backend, "original": original}
    own |= {"base_url": base_url, "served_as": served_as}
    flags: dict[KeyPath, str] = {}
    for number, name in enumerate(names):
        known = registry.card("task", name).options.model_fields if registry.has("task", name) else ()
        flags[("evaluate", number)] = "TASK"
        flags |= {("evaluate", number, key): f"--set {key}" for key in (*known, *raw)}
        direct = ("data", *own, *(["max_new_tokens"] if max_new_tokens is not None else []))
        flags |= {("evaluate", number, key): f"--{key.replace('_', '-')}" for key in direct}
    plan = eval_plan(
        registry,
        ModelKeys(path=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code),
        [task_keys(registry, name, raw, **own) for name in names],
        flags=flags,
    )
    folder = out or Path("results") / f"{_slug(task)}-{_slug(model)}"
    _refuse_foreign(folder, names)
    workers = processes or max(1, len(visible_gpus()))
    told = check(plan, folder, offline=context.obj.offline, notes=False, processes=workers)
    check_data(plan, folder, registry, fresh=True, offline=context.obj.offline)
    _tell_cost(plan, registry, limit, preset)
    if workers > 1:
        _tell_alone(plan)
    places = {name: folder / _slug(name) if len(names) > 1 else folder for name in names}
    found = _run(plan, folder, list(places.values()), registry, workers, offline=context.obj.offline)
    about = {"options": raw, "limit": limit} | ({"original": original} if original else {})
    results = [{"model": model, **each, "told": told, **about} for each in found]
    for place, each in zip(places.values(), results, strict=True):
        write_json(place / "results.json", each)
    if any("figures" in each for each in results) and original is None:
        display.note("Compared with itself; --original names the model before quantization.")
    if as_json:
        display.print_json(results if len(names) > 1 else results[0])
    else:
        for each in results:
            _show(each)
    for place, each in zip(places.values(), results, strict=True):
        _advise(each)
        display.note(f"Wrote {place / 'results.json'} and {place / 'samples.jsonl'}")


def _preset(asked: Mapping[str, bool]) -> str:
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise RqatError(f"--{chosen[0]} and --{chosen[1]} do not go together.", hint="Choose one, and --set the rest.")
    return chosen[0] if chosen else ""


def _tell_cost(plan: Plan, registry: Registry, limit: int | None, preset: str) -> None:
    """How much will be written at most, before anything is."""
    from ..evals.harness import number_of_completions, times_asked

    for step in plan.steps:
        if "task" not in step.parts or not step.parts["task"].card.load or step.parts["task"].card.compares:
            continue
        made = registry.make(step.parts["task"].card, step.parts["task"].options)
        count, times = number_of_completions(made, limit), times_asked(made)
        tokens = made.options.max_new_tokens
        each = f", each {times} times (one per seed): {count:,} completions" if times > 1 else ""
        once = " --greedy asks once." if times > 1 and preset != "paper" else ""
        name = step.parts["task"].card.name
        display.note(
            f"{name}: {count // times:,} problem{'' if count == times else 's'}{each} of at most {tokens:,} tokens, "
            f"{count * tokens:,} in all.{once}"
        )


def _tell_alone(plan: Plan) -> None:
    """Which tasks are not shared out over processes."""
    from ..stages import stages

    for step in plan.steps:
        if "task" in step.parts and not stages()[step.stage].in_several(step):
            name = step.parts["task"].card.name
            display.note(f"{name} stays in one process; shared out is what rqat writes, in more than a batch.")


def _run(
    plan: Plan, out: Path, places: Sequence[Path], registry: Registry, workers: int, *, offline: bool
) -> list[dict[str, Any]]:
    """Evaluates beside `out`, where an interrupted evaluation resumes, and moves the samples to their places.

    Returns:
        the figures of every task.
    """
    with work_beside(out, worth_keeping=["*.partial/.resume/*.jsonl"]) as work:
        job = run_in(work, plan, registry, offline=offline, workers=workers)
        steps = [step for step in plan.steps if "task" in step.parts]
        found = []
        for step, place in zip(steps, places, strict=True):
            made = job.result_of(step.name)
            found.append(read_json(made / "results.json"))
            with explained(place):
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made / "samples.jsonl", place / "samples.jsonl")
        return found


def _advise(results: Mapping[str, Any]) -> None:
    """What to do where most completions were cut off."""
    if results.get("truncated", 0) >= 0.5:
        limit = results["generation"]["max_new_tokens"]
        display.note(
            f"{percent(results['truncated'])} of the completions were cut off after {limit:,} tokens; "
            f"--max-new-tokens {4 * limit} allows more."
        )


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
    if "pass_at_k" in results:
        count = len(results["seeds"])
        rows[0] = (f"avg@{count}", rows[0][1])
        rows += [(f"pass@{k}", percent(value)) for k, value in results["pass_at_k"].items() if k != "1"]
    if "metric" in results:
        rows.append(("metric", results["metric"]))
    if "truncated" in results:
        rows += [
            ("correct", results["correct"]),
            ("unverifiable", results["unverifiable"]),
            ("cut off", percent(results["truncated"])),
            ("looping", percent(results["repetition"])),
            ("tokens", f"{results['mean_tokens']:.0f} on average{_speed(results)}"),
        ]
    _print(f"{results['task']} on {results['model']}", [*rows, ("time", seconds(results["seconds"]))])


def _speed(results: Mapping[str, Any]) -> str:
    speed = results.get("tokens_per_s")
    return f", {speed:,.0f} per second" if speed else ""


def _show_comparison(results: Mapping[str, Any]) -> None:
    original = f" beside {results['original']}" if "original" in results else ""
    rows = [(name, f"{value:.6g}") for name, value in results["figures"].items()]
    rows += [("rows", f"{results['n']} of {results['data']}, {results['tokens']} tokens counted")]
    _print(f"{results['task']} of {results['model']}{original}", [*rows, ("time", seconds(results["seconds"]))])


def _print(title: str, rows: Sequence[tuple[str, Any]]) -> None:
    typer.echo(display.harmless(title))
    for name, value in rows:
        typer.echo(f"  {name:<14}{display.harmless(str(value))}")


def _refuse_foreign(folder: Path, names: Sequence[str]) -> None:
    """Refuses a folder that holds anything but earlier results."""
    if folder.is_file():
        raise RunError(f"'{folder}' is a file.", hint="Choose a folder with -o.")
    own = {*OWN_FILES, WORK, *(map(_slug, names) if len(names) > 1 else ())}
    foreign = [path.name for path in folder.iterdir() if path.name not in own] if folder.is_dir() else []
    if foreign:
        raise RunError(
            f"'{folder}' holds '{foreign[0]}', which is no evaluation's.", hint="Choose another folder with -o."
        )
    for name in names if len(names) > 1 else ():
        _refuse_foreign(folder / _slug(name), [name])


def _slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")
