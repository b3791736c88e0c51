"""`rqat traces`: a model answers the prompts of a source, into a file that calibration and training read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..contracts.options import LAST_SEED
from ..errors import RunError
from ..storage import write_json_lines
from . import display, options
from .beside import run_in, work_beside, work_of
from .device import Device
from .values import pairs, source

if TYPE_CHECKING:
    from ..plan import Plan
    from ..registry import Registry

SOURCE = "traces"


def traces(
    context: typer.Context,
    model: options.Model,
    prompts: Annotated[
        str,
        typer.Option(metavar="SOURCE", help="Whose prompts are answered: NAME, NAME:KEY=VALUE,..., or a file."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .jsonl file to write.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Which of its rows.")] = "train",
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Order of the prompts, and of the sampling.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask the first prompts only.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling, with a temperature.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a completion is cut off.")] = 2048,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Keep completions that are finished, not-looping, correct; repeatable: all has to hold.  "
            "[default: finished, not-looping]",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt before every prompt.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="KEY=VALUE", help="Setting of the chat template: enable_thinking=false."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task whose grader says what is correct.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Completions written together, and lost when interrupted.")] = 64,
    device: Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Let a model answer the prompts of a source. Writes prompts with completions, for calibration and training."""
    from ..keys import DataKeys, ModelKeys
    from ..stages.produce.command import produce_plan
    from .plan import check, check_data

    if out.suffix != ".jsonl":
        raise RunError(f"'{out}' is not the name of a .jsonl file.", hint="Its ending is how rows are read again.")
    if out.exists():
        raise RunError(f"'{out}' is there already.", hint="Choose another file with -o, or remove it.")
    given = {
        "prompts": [source(prompts, "--prompts")],
        "limit": limit,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        **({"system": system} if system else {}),
        **({"chat_template_kwargs": pairs(template, "--template")} if template else {}),
        **({"keep": keep} if keep else {}),
        "task": task,
        "batch": batch,
    }
    flags = {(key,): "-n" if key == "n" else f"--{key.replace('_', '-')}" for key in given}
    plan = produce_plan(
        context.obj.registry,
        ModelKeys(path=model, revision=revision, trust_remote_code=trust_remote_code),
        DataKeys.model_validate({"source": SOURCE, "split": split, "seed": seed, **given}),
        flags | {("prompts", 0): "--prompts", ("prompts", 0, "source"): "--prompts"},
    )
    work = work_of(out)
    check(plan, work, offline=context.obj.offline, notes=False)
    check_data(plan, work, context.obj.registry, fresh=True, offline=context.obj.offline)
    found = _run(plan, out, context.obj.registry, offline=context.obj.offline)
    if as_json:
        display.print_json(found)
    else:
        _show(found)
    display.note(f"Wrote {out}")


def _run(plan: Plan, out: Path, registry: Registry, *, offline: bool) -> dict[str, Any]:
    """Lets the model write beside `out`, where an interrupted command resumes, and puts what is kept there."""
    from ..storage import explained, read_json

    with work_beside(out, worth_keeping=["*.partial/*.jsonl"]) as work:
        job = run_in(work, plan, registry, offline=offline)
        step = plan.steps[-1]
        keys: Any = step.settings
        use = step.parts["source"]
        made = registry.make(use.card, use.options, [(use.card, use.options, job.result_of(step.name))])
        rows = (
            {name: value for name, value in row.items() if name != "place"} for row in made.rows(keys.split, keys.seed)
        )
        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(out, rows)
        found: dict[str, Any] = read_json(job.result_of(step.name) / "manifest.json")["results"]
        return found


def _show(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if name == "source":
            continue
        inner = (
            ", ".join(f"{count} {what}" for what, count in value.items()) or "none"
            if isinstance(value, Mapping)
            else value
        )
        display.line(f"  {name:<14}{inner}")
