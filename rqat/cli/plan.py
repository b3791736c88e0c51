"""`rqat plan`: what a recipe will do, with every default, who provides each part, and what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..contracts.options import became
from ..errors import RqatError
from ..figures import size
from . import display, options
from .device import Device, likely_device, visible_gpus

if TYPE_CHECKING:
    from ..plan import Plan
    from ..registry import Registry
    from ..run_folder import Fate
    from ..stage import Finding, Step

INDENT = " " * 15


def plan(
    context: typer.Context,
    recipe: options.RecipeOrNone = None,
    name: options.RecipeOption = None,
    changes: options.Changes = None,
    out: options.RunFolder = None,
    data: Annotated[
        bool, typer.Option("--data", help="Read the data as well, as a run would; this takes seconds.")
    ] = False,
    processes: options.Processes = 1,
    device: Device = None,
    as_json: options.Json = False,
) -> None:
    """Show what a recipe will do. Every step with all defaults, memory and disk, warnings and errors; nothing runs."""
    from ..plan import build_plan
    from ..preflight import preflight, read_data
    from ..recipe import load_recipe

    asked = options.one_recipe(recipe, name, "plan")
    made = build_plan(load_recipe(asked, changes or ()), context.obj.registry)
    folder = out or Path("runs") / made.recipe.name
    device, workers = likely_device(), processes or max(1, len(visible_gpus()))
    findings = preflight(made, folder=folder, offline=context.obj.offline, device=device, processes=workers)
    if data and not any(found.level == "error" for found in findings):
        findings = [*read_data(made, context.obj.registry, offline=context.obj.offline), *findings]
    sizes = _sizes(made, device, offline=context.obj.offline, processes=workers)
    bits = _bits(made, offline=context.obj.offline)
    states = _fates(made, folder)
    if as_json:
        display.print_json(
            {
                "bits": {f"per_{what.split()[0]}": round(value, 4) for what, value in bits.items() if what},
                "bytes": int(bits[""]) if bits.get("") else None,
                "recipe": made.recipe.model_dump(mode="json"),
                "steps": [
                    _as_json(step) | sizes.get(step.name, {}) | _state(states.get(step.name)) for step in made.steps
                ],
                "findings": [{"level": found.level, "text": found.text, "hint": found.hint} for found in findings],
            }
        )
    else:
        _show(made, sizes, bits, states, workers)
        typer.echo()
        for found in findings:
            show_finding(found)
    if any(found.level == "error" for found in findings):
        raise typer.Exit(2)


def check(
    made: Plan,
    folder: Path,
    *,
    offline: bool,
    fresh: bool = False,
    processes: int = 1,
    machines: int = 1,
    notes: bool = True,
) -> list[str]:
    """Looks for everything that would stop a plan later; warnings are shown, and notes unless `notes` is false.

    Args:
        fresh: what the folder holds is thrown away before.
        processes, machines: that work together, and that they are on.

    Returns:
        warnings and notes, one line each.

    Raises:
        RqatError: every error, all at once.
    """
    from ..preflight import preflight

    errors, told = [], []
    device = likely_device()
    found_all = preflight(
        made, folder=folder, fresh=fresh, offline=offline, device=device, processes=processes, machines=machines
    )
    for found in _in_flags(made, found_all):
        if found.level == "error":
            errors.append(found)
            continue
        told.append(f"{found.text} {found.hint}".rstrip())
        if notes or found.level != "note":
            show_finding(found)
    _refuse(errors)
    return told


def check_data(
    made: Plan, folder: Path, registry: Registry, *, fresh: bool = False, offline: bool = False
) -> list[str]:
    """Looks into the data of every step that `folder` does not hold yet, or with `fresh` of every step.

    Warnings are shown.

    Returns:
        warnings and notes, one line each.

    Raises:
        RqatError: everything that is missing or malformed at its beginning, all at once.
    """
    from ..model.memory import importing
    from ..preflight import read_data
    from ..run_folder import fates

    with display.waiting("Loading libraries, looking into the data"), importing():
        done = [] if fresh else [fate.step for fate in fates(made, folder) if fate.state == "kept"]
        found = read_data(made, registry, done=done, offline=offline, device=likely_device())
    found = _in_flags(made, found)
    for each in found:
        if each.level != "error":
            show_finding(each)
    _refuse([each for each in found if each.level == "error"])
    return [f"{each.text} {each.hint}".rstrip() for each in found]


def _in_flags(made: Plan, findings: Sequence[Finding]) -> list[Finding]:
    """Findings of a plan that a command built, in the words of that command."""
    say = made.place.in_flags
    return [replace(found, text=say(found.text), hint=say(found.hint)) for found in findings]


def _refuse(errors: Sequence[Finding]) -> None:
    if len(errors) == 1:
        raise RqatError(errors[0].text, hint=errors[0].hint)
    if errors:
        raise RqatError(
            "\n  ".join([f"{len(errors)} things stand in the way:", *(f"{e.text} {e.hint}" for e in errors)])
        )


def show_finding(found: Finding) -> None:
    """One line on stderr, or two when there is something to do."""
    colour = {"error": "red", "warning": "yellow"}.get(found.level)
    hint = f" {found.hint}" if found.hint else ""
    level = typer.style(found.level.capitalize(), fg=colour)
    typer.echo(f"{level}: {display.harmless(found.text + hint)}", err=True)


def _sizes(made: Plan, device: str, *, offline: bool, processes: int) -> dict[str, dict[str, Any]]:
    """Memory and disk of every step, and what keys come to that leave it to the free memory.

    Nothing when the model cannot be read, which pre-flight reports.
    """
    from ..capacity import estimate
    from ..model.config import read_config

    try:
        config = read_config(made.model, offline=offline)
        found = estimate(made, config, device, offline=offline, processes=processes)
    except RqatError:
        return {}
    return {
        one.step: {
            "memory_bytes": one.memory_bytes,
            "memory_together_bytes": one.together_bytes,
            "disk_bytes": one.disk_peak_bytes,
            "chosen": dict(one.chosen),
        }
        for one in found
    }


def _bits(made: Plan, *, offline: bool) -> dict[str, float]:
    """Bits per quantized weight, and per parameter in all, and bytes (""); the latter only if the model can be read."""
    from ..capacity import bits
    from ..grids import bits_per_weight
    from ..model.config import read_config

    try:
        config = read_config(made.model, offline=offline)
        found = bits(made, config)
    except RqatError:
        for_all = not made.scheme.patterns and made.spelled == made.scheme.brief
        return {"weight": bits_per_weight(made.scheme.default)} if for_all else {}
    if found is None:
        return {}
    weight = {} if found[0] is None else {"weight": found[0]}
    return {**weight, "parameter in all": found[1], "": found[1] * config.parameters / 8}


def _fates(made: Plan, folder: Path) -> dict[str, Fate]:
    """What becomes of every step, where the folder holds an earlier run; nothing when the model cannot be read."""
    from ..run_folder import fates

    if not folder.is_dir():
        return {}
    try:
        return {fate.step: fate for fate in fates(made, folder)}
    except RqatError:
        return {}


def _state(fate: Fate | None) -> dict[str, str]:
    return {"state": fate.state, "reason": fate.reason} if fate else {"state": "new", "reason": ""}


def _show(
    made: Plan,
    sizes: Mapping[str, Mapping[str, Any]],
    bits: Mapping[str, float],
    states: Mapping[str, Fate],
    workers: int,
) -> None:
    from ..stages import stages

    about = ", ".join(f"{value:.2f} bits per {what}" if what else size(value) for what, value in bits.items())
    display.line(f"{made.recipe.name}: {made.model.path} at {made.spelled}{f' ({about})' if about else ''}")
    shown: dict[tuple[str, ...], str] = {}
    for step in made.steps:
        needs = sizes.get(step.name)
        about = ""
        if needs:
            each = f" in each of {workers} processes" if workers > 1 and stages()[step.stage].in_several(step) else ""
            memory, together = needs["memory_bytes"], needs["memory_together_bytes"]
            shared = f"{size(together)} memory, " if together > memory else ""  # of one machine
            about = (
                f"   about {shared}{size(memory)}{'' if shared else ' memory'}{each}, {size(needs['disk_bytes'])} disk"
            )
            about += "".join(
                f", {key} {json.dumps(value)} as memory is free now" for key, value in needs["chosen"].items()
            )
        typer.echo(f"\n{typer.style(step.name, bold=True)}{display.harmless(about)}")
        if fate := states.get(step.name):
            display.line(f"  {fate.state}{f': {fate.reason}' if fate.reason else ''}")
        for role, earlier in step.inputs.items():
            display.line(f"  {role:<12} {earlier}")
        lines = tuple(_described(step))
        same = shown.setdefault(lines, step.name)
        for line in lines if same == step.name else (f"  as {same}",):
            typer.echo(display.harmless(line))


def _described(step: Step) -> Iterator[str]:
    """The recipe's keys of a step, then its parts, each with who provides it and its options."""
    from ..facts import files_of
    from ..stages import stages

    yield from _wrapped(stages()[step.stage].shown(step))
    for role, use in step.parts.items():
        card = use.card
        yield f"  {role:<12} {card.name}  ({card.module}, {card.owner} {card.version})"
        values = use.options.model_dump(mode="json")
        paths = {option: f"{file}{became(file)}" for option, file in files_of(use.options) if values[option] == file}
        yield from _wrapped(values | paths)


def _wrapped(values: Mapping[str, Any]) -> Iterator[str]:
    """Keys and values, several to a line."""
    line = ""
    for text in _flat(values):
        if line and len(line) + len(text) > 100:
            yield f"{INDENT}{line}"
            line = ""
        line += f"{'  ' if line else ''}{text}"
    if line:
        yield f"{INDENT}{line}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _as_json(step: Step) -> dict[str, Any]:
    from ..stages import stages

    return {
        "name": step.name,
        "stage": step.stage,
        "variant": step.variant,
        "settings": stages()[step.stage].shown(step),
        "parts": {
            role: {
                "name": use.card.name,
                "module": use.card.module,
                "owner": use.card.owner,
                "version": use.card.version,
                "options": use.options.model_dump(mode="json"),
            }
            for role, use in step.parts.items()
        },
        "inputs": step.inputs,
    }
