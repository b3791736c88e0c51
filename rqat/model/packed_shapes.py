"""What small files and headers tell of a quantized checkpoint: its settings, and the shapes of its layers.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..scheme import Scheme
from ..storage import read_json
from .config_groups import group_of

WORD = 32
"""Bits of the words that codes are packed into."""


BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where AutoGPTQ and AutoAWQ wrote their settings before config.json had them, and the `quant_method` they mean."""


def with_settings(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json with the `quantization_config` that older releases have in a file of its own."""
    if raw.get("quantization_config") or raw.get("compression_config") or raw.get("quantization"):
        return raw
    for name, method in BESIDE.items():
        if (folder / name).is_file():
            try:
                found = read_json(folder / name)
            except ValueError:
                continue
            if isinstance(found, dict):
                return raw | {"quantization_config": {"quant_method": method, **found}}
    return raw


class Shaped(Protocol):
    """A tensor, as its header describes it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


def parameters_of(
    tensors: Mapping[str, Shaped], shapes: Mapping[str, tuple[int, int]], quantization: Mapping[str, Any]
) -> int:
    """Parameters of a quantized checkpoint: of a packed layer its weights, not what stands for them.

    Args:
        shapes: `(O, I)` of the layers that may be packed, by full name.
    """
    packed = {name: shape for name, shape in shapes.items() if packed_shape(name, tensors, quantization)}
    whole = (name for name in tensors if name.rpartition(".")[0] not in packed or name.endswith(".bias"))
    return sum(map(math.prod, packed.values())) + sum(math.prod(tensors[name].shape) for name in whole)


def packed_shape(name: str, tensors: Mapping[str, Shaped], quantization: Mapping[str, Any]) -> tuple[int, int] | None:
    """`(O, I)` of a quantized layer; None where it is none, or is packed in a way that is not known.

    Where a row does not fill its last word, `I` may be too large by less than a word.
    """
    method = quantization.get("quant_method")
    try:
        if method == "gptq":
            words, out = tensors[f"{name}.qweight"].shape
            order = tensors.get(f"{name}.g_idx")
            return out, order.shape[0] if order else words * WORD // int(quantization["bits"])
        if method == "awq":
            width, words = tensors[f"{name}.qweight"].shape
            return words * 8, width
        if method == "compressed-tensors":
            out, words = tensors[f"{name}.weight_packed"].shape
            return out, words * WORD // int((group_of(name, quantization) or {})["weights"]["num_bits"])
        if method == "mlx":
            out, words = tensors[f"{name}.weight"].shape if f"{name}.scales" in tensors else ()
            own = quantization.get(name)
            return out, words * WORD // int((own if isinstance(own, Mapping) else quantization)["bits"])
        if method == "rqat":
            out, words = tensors[f"{name}.codes"].shape
            return out, words * WORD // Scheme.parse(quantization["layers"][name]).bits
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # which whoever reads the layer tells
    return None
