"""`rqat eval`: one task on one model, ours or any that lm-eval knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError, RqatError, RunError
from ..figures import percent, seconds
from ..quiet import only_our_bars
from . import display, options
from .values import pairs

if TYPE_CHECKING:
    from ..contracts import Task
    from ..evals.harness import Evaluation
    from ..generation.writer import Writer
    from ..problems import Place
    from ..registry import Registry

    Run = Callable[[Any, Any, Writer], Evaluation]
    """Evaluates a model with its tokenizer; the last is what writes."""

LM_EVAL = "lm-eval:"
"""What recipes put before a task of lm-eval's own; here it may be left out."""

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
    backend: options.Backend = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Evaluate a model on a task. The model may be an original, a quantized or an exported one."""
    from ..generation.backend import writer_for
    from ..storage import explained, write_json, write_json_lines
    from .models import load_any

    if task.startswith("builtin:") or (Path(task) / "config.json").is_file():
        raise RqatError(f"'{task}' is a model; the task comes first.", hint=f"rqat eval {model} {task}")
    raw = pairs(changes or [], "--set") | ({} if data is None else {"data": data})
    own = context.obj.registry.has("task", task)
    run = (_own if own else _of_lm_eval)(context.obj.registry, task, raw, limit, batch)
    folder = out or Path("results") / f"{_slug(task)}-{_slug(model)}"
    _refuse_foreign(folder)
    only_our_bars()
    if not own and backend == "auto":
        # lm-eval's tasks may want likelihoods: the model is asked through transformers.
        backend = "transformers"
    loaded, tokenizer = load_any(
        model, offline=context.obj.offline, revision=revision, trust_remote_code=trust_remote_code, backend=backend
    )
    writer = writer_for(loaded, backend)
    found = run(loaded, tokenizer, writer)
    results = {"model": model, **found.results, "options": raw, "limit": limit, "backend": writer.name}
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "samples.jsonl", found.samples)
    write_json(folder / "results.json", results)
    if as_json:
        display.print_json(results)
    else:
        _show(results)
    display.note(f"Wrote {folder / 'results.json'} and {folder / 'samples.jsonl'}")


def _own(registry: Registry, name: str, raw: Mapping[str, Any], limit: int | None, batch: int) -> Run:
    """A task of a plugin, ready to run on a model; its options and its data are checked now."""
    from ..evals.harness import number_of_completions, run_task

    card = registry.card("task", name)
    task: Task = registry.make(card, registry.options(card, raw, _place(raw)))
    total = number_of_completions(task, limit)

    def run(model: Any, tokenizer: Any, writer: Writer) -> Evaluation:
        with display.Bars().task(f"evaluate {name}", total) as bar:
            found = run_task(
                task,
                name,
                model,
                tokenizer,
                limit=limit,
                batch=batch,
                report=bar.update,
                writer=writer,
            )
            bar.update(total, f"{found.results['accuracy']:.1%} correct")
            return found

    return run


def _of_lm_eval(registry: Registry, name: str, raw: Mapping[str, Any], limit: int | None, batch: int) -> Run:
    """A task of lm-eval's own, ready to run on a model; its name and its options are checked now."""
    from pydantic import ValidationError

    from ..contracts import TaskOptions
    from ..evals.lm_eval_tasks import find_task, run_lm_eval_task
    from ..problems import problems_of

    name = name.removeprefix(LM_EVAL)
    known = [card.name for card in registry.cards("task")]
    find_task(name, known)
    try:
        chosen = TaskOptions.model_validate(dict(raw))
    except ValidationError as error:
        raise RecipeError(problems_of(error, TaskOptions, _place(raw))) from None

    def run(model: Any, tokenizer: Any, writer: Writer) -> Evaluation:
        display.note(f"evaluate {name}, by lm-eval ...")
        return run_lm_eval_task(name, model, tokenizer, chosen, limit=limit, batch=batch, known=known)

    return run


def _place(raw: Mapping[str, Any]) -> Place:
    """Where the options of a task were given."""
    from ..problems import Place

    return Place({(key,): "--data" if key == "data" else f"--set {key}" for key in raw})


def _show(results: Mapping[str, Any]) -> None:
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
    rows.append(("time", seconds(results["seconds"])))
    typer.echo(f"{results['task']} on {results['model']}")
    for name, value in rows:
        typer.echo(f"  {name:<14}{value}")
    for note in results["notes"]:
        display.note(f"Note: {note}")


def _refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds anything but earlier results."""
    if folder.is_file():
        raise RunError(f"'{folder}' is a file.", hint="Choose a folder with -o.")
    foreign = [path.name for path in folder.iterdir() if path.name not in OWN_FILES] if folder.is_dir() else []
    if foreign:
        raise RunError(
            f"'{folder}' holds '{foreign[0]}', which is no evaluation's.", hint="Choose another folder with -o."
        )


def _slug(text: str) -> str:
    """`text` as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.")
