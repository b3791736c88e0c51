"""Shapes of quantized layers, from headers of packed tensors and what config.json says of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..scheme import Scheme
from .config_groups import group_of

WORD = 32
"""Bits of the words that codes are packed into."""


class Shaped(Protocol):
    """A tensor, as its header describes it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


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
            out, words = tensors[f"{name}.weight"].shape
            own = quantization.get(name)
            return out, words * WORD // int((own if isinstance(own, Mapping) else quantization)["bits"])
        if method == "rqat":
            out, words = tensors[f"{name}.codes"].shape
            return out, words * WORD // Scheme.parse(quantization["layers"][name]).bits
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # which whoever reads the layer tells
    return None
