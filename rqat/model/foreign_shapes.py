"""Whether the tensors of another tool's quantized layers fit one another, and what config.json says: by headers alone.

Where they do not, readers compute with what they find, to other weights, or end in the middle of the work.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Protocol

from ..scheme import ROW, Scheme

WORD = 32
"""Bits of the words that codes are packed into."""

WORDS = ("I32", "U32")
"""What they are, as headers spell it."""

PACKED = ("qweight", "qzeros", "weight_packed", "weight_zero_point")
"""Parts of a layer that are such words."""

FRACTIONS = ("scales", "biases", "weight_scale")
"""Parts that are numbers with a fraction."""

PLAIN_ZEROS = "I8"
"""Of zero points that compressed-tensors has not packed: releases before 0.9, one byte for each, 0 in the middle."""

OWN = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "mlx": ("scales", "biases"),
}
"""Tensors that no layer has which is not quantized, by `quant_method`."""


class Described(Protocol):
    """A tensor, as its header describes it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> str:
        """As safetensors spells it."""


def orphan(method: str, layers: Iterable[str], tensors: Mapping[str, Described]) -> str:
    """What is wrong where a part of a quantized layer lies there without codes, or a weight; empty if none does."""
    known, parts = {*layers}, OWN[method]
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if part in parts and layer not in known and f"{layer}.weight" not in tensors:
            return f"{name} is there, and the codes of that layer are not"
    return ""


def unsaid(names: Iterable[str]) -> str:
    """What to do where config.json is silent on tensors that only quantized layers have; empty if these are none."""
    if not any(name.rpartition(".")[2] in (*PACKED, *FRACTIONS) for name in names):
        return ""
    return "They are another tool's packed weights: put its quantization_config back, or fetch the model again."


def has_plain_zeros(tensors: Mapping[str, Described]) -> bool:
    """Whether zero points are of the kind that newer releases of compressed-tensors do not unpack."""
    return any(name.endswith(".weight_zero_point") and one.dtype == PLAIN_ZEROS for name, one in tensors.items())


def misfit(method: str, name: str, scheme: Scheme, tensors: Mapping[str, Described]) -> str:
    """What is wrong with the tensors of one layer; empty if they fit, or their reader looks at them himself (MLX).

    A part that is missing is another's to tell.
    """
    if wrong := _of_another_kind(method, name, tensors):
        return wrong
    if method == "compressed-tensors":
        return _compressed(name, scheme, tensors)
    if method in ("gptq", "awq"):
        return _by_columns(method, name, scheme, tensors)
    return ""


def _of_another_kind(method: str, name: str, tensors: Mapping[str, Described]) -> str:
    """Of words that are none, and of scales without a fraction: both would be decoded to other weights."""
    packed = (*PACKED, "weight") if method == "mlx" else PACKED
    for part in (*packed, *FRACTIONS):
        found = tensors.get(f"{name}.{part}")
        if found is None or (part == "weight_zero_point" and found.dtype == PLAIN_ZEROS):
            continue
        if part in packed and found.dtype not in WORDS:
            return f"{name}.{part} is {found.dtype}, and codes are packed into words of {WORD} bits"
        if part in FRACTIONS and not found.dtype.startswith(("F", "BF")):
            return f"{name}.{part} is {found.dtype}, which holds no fractions"
    return ""


def _by_columns(method: str, name: str, scheme: Scheme, tensors: Mapping[str, Described]) -> str:
    """Of the layouts that have output features side by side: `(G, O)` scales, `(G, words)` zero points."""
    codes, zeros, scales = (tensors.get(f"{name}.{part}") for part in ("qweight", "qzeros", "scales"))
    if codes is None or zeros is None or scales is None:
        return ""
    order = tensors.get(f"{name}.g_idx")
    if method == "awq":
        width, out = codes.shape[0], codes.shape[1] * WORD // scheme.bits
    else:
        width, out = order.shape[0] if order else codes.shape[0] * WORD // scheme.bits, codes.shape[1]
    if not scheme.divides(width):
        return f"{name} has {width} input features, which do not split into groups of {scheme.group}"
    groups = scheme.groups(width)
    wanted = {"scales": (groups, out), "qzeros": (groups, ceil(out * scheme.bits / WORD))}
    return _differing(name, scheme, {"scales": scales, "qzeros": zeros}, wanted)


def _compressed(name: str, scheme: Scheme, tensors: Mapping[str, Described]) -> str:
    codes, scales, zeros = (tensors.get(f"{name}.weight_{part}") for part in ("packed", "scale", "zero_point"))
    if codes is None or scales is None:
        return ""
    if codes.dtype not in WORDS or len(codes.shape) != 2 or len(scales.shape) != 2:
        return f"{name} has codes in {codes.dtype} of shape {codes.shape} and scales of shape {scales.shape}"
    (out, words), groups = codes.shape, scales.shape[1]
    # How many values the last word of a row holds stands in weight_shape, which is not in the header.
    most = words * WORD // scheme.bits
    least = (words - 1) * WORD // scheme.bits + 1
    fits = groups == 1 if scheme.group == ROW else least <= groups * scheme.group <= most
    if scales.shape[0] != out or not fits:
        width = f"{least} to {most}" if least < most else f"{most}"
        return f"{name} has {out} x {width} codes and scales of shape {scales.shape}, which are not {scheme}"
    if scheme.symmetric:
        return ""
    if zeros is None:
        return f"{name} has no zero points, and {scheme} by config.json"
    packed = (ceil(out * scheme.bits / WORD), groups)
    wanted = (out, groups) if zeros.dtype == PLAIN_ZEROS else packed
    return _differing(name, scheme, {"weight_zero_point": zeros}, {"weight_zero_point": wanted})


def _differing(name: str, scheme: Scheme, found: Mapping[str, Described], wanted: Mapping[str, tuple[int, ...]]) -> str:
    for part, shape in wanted.items():
        if found[part].shape != shape:
            return f"{name}.{part} is {found[part].shape}, and {shape} at {scheme}, as config.json says"
    return ""
