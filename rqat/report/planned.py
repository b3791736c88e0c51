"""What a run is to do, written into its folder before the first step: plan.json, and recipe.yaml to do it again.

    {"name", "model", "scheme", "device", "recipe": every default filled in, "told": [...], "told_of_data": [...],
     "rqat", "packages", "machine",
     "steps": [{"name", "stage", "variant", "start": variant it starts from, "settings": its keys as they were given,
                "data": [{"role", "name", "domain", "options"}]}]}

A report is made from it and from what the steps have left, so that a run can be looked at while it goes on, after it
was stopped, and on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..filled import filled, options_of
from ..storage import read_json, write_json, write_text
from .machine import machine, versions

if TYPE_CHECKING:
    from ..job import Job
    from ..stage import Use

PLAN, RECIPE = "plan.json", "recipe.yaml"

DATA = ("source", "task")
"""Kinds of parts that say what a step reads or asks."""


def planned(job: Job) -> dict[str, Any]:
    """Contents of plan.json."""
    plan = job.plan
    variants = {step.name: step.variant for step in plan.steps}
    steps = [
        {
            "name": step.name,
            "stage": step.stage,
            "variant": step.variant,
            "start": variants.get(step.inputs.get("start", ""), ""),
            "settings": step.settings.model_dump(mode="json"),
            "data": [_told(role, use) for role, use in step.parts.items() if use.card.kind in DATA],
        }
        for step in plan.steps
    ]
    recipe = filled(plan)
    of_data = _of_data(job, recipe)
    return {
        "name": plan.recipe.name,
        "model": plan.model.path,
        "scheme": plan.spelled,
        "device": job.device,
        "recipe": recipe,
        "told": [*job.told, *of_data],
        "told_of_data": of_data,
        "steps": steps,
        "rqat": __version__,
        "packages": versions(),
        "machine": machine(job.device),
    }


def _of_data(job: Job, recipe: dict[str, Any]) -> list[str]:
    """What was found in the data, now and when the same recipe began: what is done already is not looked into again."""
    before = read_json(job.folder / PLAN)
    same = isinstance(before, dict) and before.get("recipe") == recipe and isinstance(before.get("told_of_data"), list)
    return [*dict.fromkeys([*(before["told_of_data"] if same else ()), *job.told_of_data])]


def _told(role: str, use: Use) -> dict[str, Any]:
    """What a step reads, with what that is about: a source made of others is about what most of its rows are."""
    first = use
    while not first.card.domain and first.sources:
        first = max(first.sources, key=lambda part: part[1])[0]
    return {"role": role, "name": use.card.name, "domain": first.card.domain, "options": options_of(use)}


def write_plan(job: Job) -> None:
    """Writes both files."""
    import yaml

    found = planned(job)
    write_text(
        job.folder / RECIPE,
        "# Every default filled in. The same again: rqat qat --recipe THIS_FILE -o ANOTHER_FOLDER\n\n"
        + yaml.safe_dump(found["recipe"], sort_keys=False, allow_unicode=True),
    )
    write_json(job.folder / PLAN, found)


def is_written(job: Job) -> bool:
    """Whether plan.json is that of this job."""
    return bool(read_json(job.folder / PLAN) == planned(job))


def read_plan(folder: Path) -> dict[str, Any]:
    """plan.json of a run; of one made before there was such a file, what its other files tell. Never raises."""
    found = read_json(folder / PLAN)
    if isinstance(found, dict) and _is_plan(found):
        return found
    manifest = read_json(folder / "manifest.json")
    manifest = manifest if isinstance(manifest, dict) else {}
    recipe = _mapping(manifest.get("recipe"))
    model = _mapping(recipe.get("model"))
    told = manifest.get("told")
    return {
        "name": str(manifest.get("name") or folder.resolve().name),
        "model": str(model.get("path") or "unknown model"),
        "scheme": str(manifest.get("scheme") or "unknown scheme"),
        "device": "cpu",
        "recipe": recipe,
        "told": told if isinstance(told, list) else [],
        "steps": [],
        "rqat": str(manifest.get("rqat") or "unknown"),
        "packages": _mapping(manifest.get("packages")),
        "machine": _mapping(manifest.get("machine")),
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


KINDS = {
    **dict.fromkeys(("name", "model", "scheme", "device", "rqat"), str),
    **dict.fromkeys(("recipe", "packages", "machine"), dict),
    **dict.fromkeys(("told", "steps"), list),
}
STEP = {"name": str, "stage": str, "variant": str, "start": str, "settings": dict, "data": list}


def _is_plan(found: dict[str, Any]) -> bool:
    if not all(isinstance(found.get(key), kind) for key, kind in KINDS.items()):
        return False
    steps = found["steps"]
    if not all(isinstance(s, dict) and all(isinstance(s.get(k), kind) for k, kind in STEP.items()) for s in steps):
        return False
    data = [entry for step in steps for entry in step["data"]]
    return all(isinstance(e, dict) and all(isinstance(e.get(k), str) for k in ("role", "name", "domain")) for e in data)
