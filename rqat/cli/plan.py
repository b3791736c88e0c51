"""`rqat plan`: what a recipe will do, with every default, who provides each part, and what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import RqatError
from . import display, options

if TYPE_CHECKING:
    from ..plan import Plan, Step
    from ..preflight import Finding
    from ..registry import Registry

INDENT = " " * 15
NAMES = frozenset({"source", "method", "objective", "task", "format"})
"""Keys that name a part; parts have lines of their own."""

OTHERS = {"train": {"gate"}, "evaluate": {"variants"}}
"""Keys of a mapping that are about other steps than the one they are shown for."""


def plan(
    context: typer.Context,
    name: options.RecipeName,
    changes: options.Changes = None,
    out: options.RunFolder = None,
    as_json: options.Json = False,
) -> None:
    """Show what a recipe will do. Every step with all defaults, memory and disk, warnings and errors; nothing runs."""
    from ..plan import build_plan
    from ..preflight import preflight
    from ..recipe import load_recipe

    made = build_plan(load_recipe(name, changes or ()), context.obj.registry)
    folder = out or Path("runs") / made.recipe.name
    findings = preflight(made, folder=folder, offline=context.obj.offline, device=likely_device())
    sizes = _sizes(made, likely_device(), offline=context.obj.offline)
    bits = _bits(made, offline=context.obj.offline)
    if as_json:
        display.print_json(
            {
                "bits": {f"per_{what.split()[0]}": round(value, 4) for what, value in bits.items()},
                "recipe": made.recipe.model_dump(mode="json"),
                "steps": [_as_json(step) | sizes.get(step.name, {}) for step in made.steps],
                "findings": [{"level": found.level, "text": found.text, "hint": found.hint} for found in findings],
            }
        )
    else:
        _show(made, sizes, bits)
        typer.echo()
        for found in findings:
            show_finding(found)
    if any(found.level == "error" for found in findings):
        raise typer.Exit(2)


def check(made: Plan, folder: Path, *, offline: bool, processes: int = 1) -> None:
    """Looks for everything that would stop a plan later; warnings are shown.

    Raises:
        RqatError: every error, all at once.
    """
    from ..preflight import preflight

    errors = []
    for found in preflight(made, folder=folder, offline=offline, device=likely_device(), processes=processes):
        if found.level == "error":
            errors.append(found)
        else:
            show_finding(found)
    _refuse(errors)


def check_data(made: Plan, folder: Path, registry: Registry, *, fresh: bool = False) -> None:
    """Looks into the data of every step that `folder` does not hold yet, or with `fresh` of every step.

    Raises:
        RqatError: everything that is missing or malformed at its beginning, all at once.
    """
    from ..pipeline import MANIFEST
    from ..preflight import read_data

    done = [step.name for step in made.steps if not fresh and (folder / step.name / MANIFEST).is_file()]
    _refuse(read_data(made, registry, done=done))


def _refuse(errors: Sequence[Finding]) -> None:
    if len(errors) == 1:
        raise RqatError(errors[0].text, hint=errors[0].hint)
    if errors:
        raise RqatError(
            "\n  ".join([f"{len(errors)} things stand in the way:", *(f"{e.text} {e.hint}" for e in errors)])
        )


def likely_device() -> str:
    """ "cuda" where there is an NVIDIA driver with a device, else "cpu"; asking torch would take seconds."""
    return "cuda" if Path("/proc/driver/nvidia/gpus").is_dir() else "cpu"


def show_finding(found: Finding) -> None:
    """One line on stderr, or two when there is something to do."""
    colour = {"error": "red", "warning": "yellow"}.get(found.level)
    hint = f" {found.hint}" if found.hint else ""
    display.note(f"{typer.style(found.level.capitalize(), fg=colour)}: {found.text}{hint}")


def _sizes(made: Plan, device: str, *, offline: bool) -> dict[str, dict[str, int]]:
    """Memory and disk of every step; nothing when the model cannot be read, which pre-flight reports."""
    from ..estimate import estimate
    from ..model.config import read_config

    try:
        found = estimate(made, read_config(made.model, offline=offline), device, offline=offline)
    except RqatError:
        return {}
    return {one.step: {"memory_bytes": one.memory_bytes, "disk_bytes": one.disk_peak_bytes} for one in found}


def _bits(made: Plan, *, offline: bool) -> dict[str, float]:
    """Bits per quantized weight, and per parameter in all; the latter only where the model can be read."""
    from ..estimate import bits_of
    from ..model.config import read_config

    try:
        weight, parameter = bits_of(made, read_config(made.model, offline=offline))
    except RqatError:
        return {} if made.scheme.patterns else {"weight": made.scheme.default.bits_per_weight()}
    return {"weight": weight, "parameter in all": parameter}


def _show(made: Plan, sizes: Mapping[str, Mapping[str, int]], bits: Mapping[str, float]) -> None:
    about = ", ".join(f"{value:.2f} bits per {what}" for what, value in bits.items())
    typer.echo(f"{made.recipe.name}: {made.model.path} at {made.scheme}{f' ({about})' if about else ''}")
    shown: dict[tuple[str, ...], str] = {}
    for step in made.steps:
        needs = sizes.get(step.name)
        about = "   about {} memory, {} disk".format(*map(display.size, needs.values())) if needs else ""
        typer.echo(f"\n{typer.style(step.name, bold=True)}{about}")
        for role, earlier in step.inputs.items():
            typer.echo(f"  {role:<12} {earlier}")
        lines = tuple(_described(step))
        same = shown.setdefault(lines, step.name)
        for line in lines if same == step.name else (f"  as {same}",):
            typer.echo(line)


def _described(step: Step) -> Iterator[str]:
    """The recipe's keys of a step, then its parts, each with who provides it and its options."""
    yield from _wrapped({key: value for key, value in _keys(step).items() if not (step.parts and key in NAMES)})
    for role, use in step.parts.items():
        card = use.card
        yield f"  {role:<12} {card.name}  ({card.module}, {card.owner} {card.version})"
        yield from _wrapped(use.options.model_dump(mode="json"))


def _keys(step: Step) -> dict[str, Any]:
    """The recipe's own keys of a step; those of a part stand with the part, if there is one."""
    keys = step.settings.model_dump(mode="json")
    own = set(type(step.settings).model_fields) - OTHERS.get(step.stage, set())
    if step.stage == "gate":
        own &= {"gate", "data", "max_tokens", "seed"}
    return {key: value for key, value in keys.items() if key in own or not step.parts}


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
    return {
        "name": step.name,
        "stage": step.stage,
        "variant": step.variant,
        "settings": _keys(step),
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
