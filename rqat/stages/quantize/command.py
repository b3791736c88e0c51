"""The recipe that `rqat quantize` stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...keys import ModelKeys
from ...plan import Plan, build_plan
from ...problems import KeyPath
from ...recipe import built_recipe
from ...registry import Registry


def quantize_plan(
    registry: Registry,
    model: str | ModelKeys,
    method: str,
    *,
    scheme: str | Mapping[str, str] = "w2g128",
    calibration: str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    budget: str | None = None,
    export: str | Mapping[str, Any] | None = "compressed-tensors",
    evaluate: Sequence[str | Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
    name: str = "quantize",
    flags: Mapping[KeyPath, str] | None = None,
) -> Plan:
    """The plan of `rqat quantize`: calibrate, quantize, export, and evaluate if asked; no training.

    Args:
        calibration: a source's name, or the `calibration` mapping of a recipe.
        options: the quantizer's.
        budget: bytes or bits per parameter in all, see `rqat.budget`; widths are chosen so that they suffice.
        method: the quantizer; transforms stand before it, with commas: "rotate,gptq".
        export: a format, or the `export` mapping of a recipe; None writes none.
        overrides: `key=value`, as `--set` takes them.
        flags: what the command calls each value in its messages, beyond the defaults below.
    """
    *transforms, quantizer = (part.strip() for part in method.split(","))
    data: dict[str, Any] = {
        "name": name,
        "model": model if isinstance(model, str) else model.model_dump(),
        "scheme": scheme if isinstance(scheme, str) else dict(scheme),
        "calibration": dict(calibration) if isinstance(calibration, Mapping) else calibration,
        "quantize": {"method": quantizer, "transforms": transforms, **(options or {})},
        "budget": budget,
        "export": dict(export) if isinstance(export, Mapping) else export,
        "evaluate": list(evaluate),
    }
    named: dict[KeyPath, str] = {
        ("model",): "MODEL",
        ("scheme",): "--scheme",
        ("budget",): "--budget",
        ("budget", "size"): "--budget",
        ("calibration",): "--calibration",
        ("calibration", "source"): "--calibration",
        ("quantize",): "--method",
        ("quantize", "method"): "--method",
        ("export", "format"): "--format",
        **{("quantize", "transforms", index, "method"): "--method" for index in range(len(transforms))},
    }
    return build_plan(built_recipe(data, named | dict(flags or {}), overrides), registry)
