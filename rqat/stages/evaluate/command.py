"""The recipe that `rqat eval` stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...keys import ModelKeys
from ...plan import Plan, build_plan
from ...problems import KeyPath
from ...recipe import built_recipe
from ...registry import Registry
from ...stage import BASE


def eval_plan(
    registry: Registry, model: str | ModelKeys, tasks: Sequence[str | Mapping[str, Any]], *, name: str = "eval"
) -> Plan:
    """The plan of `rqat eval`: tasks on a model as it is (variant "bf16"), nothing else."""
    data = {
        "name": name,
        "model": model if isinstance(model, str) else model.model_dump(),
        "quantize": None,
        "export": None,
        "evaluate": [{"variants": [BASE], **({"task": task} if isinstance(task, str) else task)} for task in tasks],
    }
    flags: dict[KeyPath, str] = {("evaluate", index, "task"): "TASK" for index in range(len(tasks))}
    return build_plan(built_recipe(data, flags | {("model",): "MODEL"}), registry)
