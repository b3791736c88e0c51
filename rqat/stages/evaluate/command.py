"""The recipe that `rqat eval` stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...contracts import TaskOptions
from ...errors import RecipeError
from ...keys import ModelKeys
from ...plan import Plan, build_plan
from ...problems import KeyPath, Place, unknown_key
from ...recipe import built_recipe
from ...registry import Registry
from ...stage import BASE
from . import LM_EVAL, EvaluateKeys


def eval_plan(
    registry: Registry,
    model: str | ModelKeys,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    name: str = "eval",
    flags: Mapping[KeyPath, str] | None = None,
) -> Plan:
    """The plan of `rqat eval`: tasks on a model as it is, a finished step of a run among them; nothing else.

    Args:
        flags: what the command calls each value in its messages, beyond MODEL and TASK.
    """
    keys = ModelKeys(path=model) if isinstance(model, str) else model
    data = {
        "name": name,
        "model": keys.model_dump(),
        "quantize": None,
        "export": None,
        "evaluate": [{"variants": [BASE], **({"task": task} if isinstance(task, str) else task)} for task in tasks],
    }
    named: dict[KeyPath, str] = {("evaluate", index, "task"): "TASK" for index in range(len(tasks))}
    return build_plan(built_recipe(data, named | {("model",): "MODEL"} | dict(flags or {})), registry)


def task_keys(registry: Registry, task: str, options: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """The `evaluate` entry of a recipe for a task given by name, rqat's own or one of lm-eval's.

    Raises:
        RecipeError: an option has the name of a key that is the recipe's own.
    """
    known = registry.has("task", task)
    fields = (registry.card("task", task).options if known else TaskOptions).model_fields
    taken = [
        unknown_key(key, fields, Place({(): f"--set {key}"})) for key in options if key in EvaluateKeys.model_fields
    ]
    if taken:
        raise RecipeError(taken)
    named = task if known or task.startswith(LM_EVAL) else f"{LM_EVAL}{task}"
    return {"task": named, **options, **own}
