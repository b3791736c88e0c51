"""The commands that make a run again, evaluate what it made, and serve it."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from ..stages import stages
from .planned import RECIPE
from .run_files import RunFiles

FLAGS = ("limit", "batch", "backend", "original", "data")
"""Keys of an evaluation that `rqat eval` has options of their own for."""

FOLDER = "THIS_FOLDER"
"""What a model card calls the folder it lies in."""

CARD = "README.md"


def commands(run: RunFiles) -> list[tuple[str, str]]:
    """What each command is for, and the command."""
    found = []
    if (run.folder / RECIPE).is_file():
        recipe = _shown(run.folder / RECIPE)
        again = f"rqat qat --recipe {shlex.quote(recipe)}{_trust(run)}"
        if run.waiting:
            found.append(("Go on", f"{again} -o {_quoted(run.folder)}"))
        found.append(("Repeat it in another folder", f"{again} -o {shlex.quote(_another(run.folder))}"))
    model = _checkpoint(run)
    if model is None:
        return found
    for settings in _evaluations(run):
        found.append((f"Evaluate on {settings['task']}", _evaluate(settings, model)))
    found.append(("Ask it something", f'rqat generate {_quoted(model)} "PROMPT"'))
    serve = _serving(model)
    if serve:
        found.append(("Serve it", serve))
    return found


def _checkpoint(run: RunFiles) -> Path | None:
    """The checkpoint for others that a run has left; else the last model it made."""
    ways = {name: stage.checkpoint for name, stage in stages().items()}
    for step in reversed(run.steps):
        if ways.get(step.stage) and (step.folder / ways[step.stage]).is_dir():
            return step.folder / ways[step.stage]
    made = [step for step in run.steps if step.stage in stages() and stages()[step.stage].makes_model]
    return made[-1].folder if made else None


def _evaluations(run: RunFiles) -> list[dict[str, Any]]:
    """Settings of the run's evaluations on a task, each once."""
    found: list[dict[str, Any]] = []
    for step in run.evaluations:
        settings = run.planned(step.name).get("settings")
        if settings and isinstance(settings.get("task"), str) and settings not in found:
            found.append(settings)
    return found


def _evaluate(settings: dict[str, Any], model: Path) -> str:
    words = ["rqat", "eval", settings["task"].removeprefix("lm-eval:"), _shown(model)]
    for key, value in settings.items():
        if value is None or key in ("task", "variants") or (key, value) == ("backend", "auto"):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, dict):
            text = str(value.get("path", text)) if key == "original" else text
        words += [f"--{key}", text] if key in FLAGS else ["--set", f"{key}={text}"]
    return shlex.join(words)


def _serving(model: Path) -> str:
    """The commands of the model card's part on serving, with this folder's name in them."""
    try:
        text = (model / CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    section = text.partition("\n## Serve it\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```shell\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return "".join(blocks).replace(FOLDER, _shown(model)).strip()


def _trust(run: RunFiles) -> str:
    trusted = any((step.facts.get("model") or {}).get("trust_remote_code") is True for step in run.steps)
    return " --set model.trust_remote_code=true" if trusted else ""


def _shown(path: Path) -> str:
    """A path as it would be typed here: from the current folder, where it lies inside."""
    place = Path(os.path.abspath(path))
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else str(path)


def _another(folder: Path) -> str:
    """A folder beside this one."""
    return f"{_shown(folder)}-again" if folder.name else f"../{folder.resolve().name}-again"


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))
