"""Groups of layers in a `quantization_config` of compressed-tensors: what is read of them, and which one a layer is in.

A layer may be meant by several groups. compressed-tensors (0.20, `match_targets` and `apply_quantization_config`) asks
first for targets that are its name, then for patterns (`re:...`) that match from the start of its name, last for those
that are its class, each in the order of the alphabet; where two groups have the same target, the later one has it.
Layers that `ignore` means are in none. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

CLASSES = ("Linear", "Module")
"""What a linear layer is, as a target may say: its class, and those above that."""


def group_of(name: str, quantization: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The group of `config_groups` by which a linear layer is quantized; None where no group means it.

    Args:
        name: full name of the layer.
        quantization: the whole `quantization_config`.

    Raises:
        ValueError: a pattern that is none.
    """
    if any(_is_target(name, str(each)) for each in quantization.get("ignore") or ()):
        return None
    holder: dict[str, Mapping[str, Any]] = {}
    for group in quantization["config_groups"].values():
        holder |= dict.fromkeys(map(str, group.get("targets") or ()), group)
    found = [target for target in _in_order(holder) if _is_target(name, target)]
    by_name = [target for target in found if target not in CLASSES]
    return holder[(by_name or found)[0]] if found else None


def _in_order(targets: Iterable[str]) -> list[str]:
    return sorted(targets, key=lambda target: ("re:" in target, target))


def _is_target(name: str, target: str) -> bool:
    """Whether a target is meant for a layer: its name, a pattern after "re:", or its class."""
    if target.startswith("re:"):
        try:
            return re.match(target.removeprefix("re:"), name) is not None
        except re.error as error:
            raise ValueError(f"'{target}' is no pattern: {error}") from error
    return target == name or target in CLASSES


def unread(group: Mapping[str, Any]) -> str:
    """What of compressed-tensors' description of a group of layers is not read here; empty if all is."""
    weights = group["weights"]
    return ", ".join(
        f"{key} {value}"
        for key, value, allowed in (
            ("type", weights.get("type", "int"), ("int",)),
            ("strategy", weights.get("strategy"), ("group", "channel")),
            ("actorder", weights.get("actorder"), (None, False, "weight", "static")),
            ("input_activations", group.get("input_activations"), (None,)),
        )
        if value not in allowed
    )
