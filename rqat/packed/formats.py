"""Finds the quantized layers of a checkpoint and packs them for the kernels, whatever format they are stored in.

    rqat's own steps       quantized.safetensors: codes, scales and zero points
    compressed-tensors     pack-quantized, groups or rows, symmetric or not
    gptq                   versions 1 and 2, groups in order

Nothing is dequantized on the way, and no value changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rqat_kernels.packing import PackedWeight, from_compressed_tensors, from_gptq, words_for

from ..contracts import QuantizedWeight
from ..errors import ModelError
from ..grids import grid_of
from ..model.checkpoint import scheme_of
from ..scheme import ROW

ANOTHER = "Use --backend transformers."

Pack = Callable[[str, Mapping[str, Tensor]], PackedWeight]
"""Makes the packed weight of the layer called so out of its tensors, by suffix ("qweight")."""


def pack_layer(path: str, layer: QuantizedWeight, device: torch.device) -> PackedWeight:
    """Packs a layer of one of rqat's own steps, by its own scheme.

    Raises:
        ModelError: a grid or a width that no kernel reads.
    """
    scheme = scheme_of(layer)
    if not grid_of(scheme).uniform:
        raise ModelError(f"'{path}' is on the grid '{scheme.grid}'; packed weights are uniform.", hint=ANOTHER)
    check_bits(path, scheme.bits)
    layer = layer.to(device)
    return PackedWeight.from_codes(layer.codes, layer.scale, layer.zero, scheme.bits)


def check_bits(path: str, bits: Any) -> int:
    """`bits`, unless it is a width that no kernel reads.

    Raises:
        ModelError: not 2, 3 or 4 bits.
    """
    if bits not in (2, 3, 4):
        raise ModelError(f"'{path}' has weights of {bits} bits; packed weights have 2, 3 or 4.", hint=ANOTHER)
    return int(bits)


def reader(path: str, quantization: Mapping[str, Any]) -> tuple[tuple[str, ...], Pack]:
    """How to read a format: suffixes of a layer's tensors, the first of which tells quantized layers, and the packing.

    Args:
        quantization: `quantization_config` of config.json.

    Raises:
        ModelError: a format, or a variant of one, that is not read here.
    """
    method = str(quantization.get("quant_method", ""))
    if method == "compressed-tensors":
        return _compressed_tensors(path, quantization)
    if method == "gptq":
        return _gptq(path, quantization)
    raise ModelError(
        f"'{path}' is stored as '{method}'; packed weights are read from compressed-tensors and gptq.", hint=ANOTHER
    )


def _compressed_tensors(path: str, quantization: Mapping[str, Any]) -> tuple[tuple[str, ...], Pack]:
    groups = quantization.get("config_groups")
    found = list(groups.values()) if isinstance(groups, Mapping) else []
    weights: Any = found[0].get("weights") if len(found) == 1 and isinstance(found[0], Mapping) else None
    if quantization.get("format") != "pack-quantized" or not isinstance(weights, Mapping):
        raise ModelError(
            f"'{path}' is compressed-tensors with format {quantization.get('format')!r} and {len(found)} groups of "
            "layers; packed weights are read from pack-quantized with one.",
            hint=ANOTHER,
        )
    wrong = [
        f"{key} {value}"
        for key, value, allowed in (
            ("type", weights.get("type", "int"), ("int",)),
            ("strategy", weights.get("strategy"), ("group", "channel")),
            ("actorder", weights.get("actorder"), (None, False, "weight", "static")),
            ("input_activations", found[0].get("input_activations"), (None,)),
        )
        if value not in allowed
    ]
    if wrong:
        raise ModelError(f"'{path}' is quantized with {', '.join(wrong)}, which is not read here.", hint=ANOTHER)
    bits = check_bits(path, weights.get("num_bits"))
    symmetric = bool(weights.get("symmetric", True))

    def pack(name: str, tensors: Mapping[str, Tensor]) -> PackedWeight:
        width = int(tensors["weight_shape"][1])
        words = tensors["weight_packed"]
        if words.shape[-1] != words_for(width, bits):
            raise ModelError(
                f"'{path}': {name} has {words.shape[-1]} words for {width} values of {bits} bits.",
                hint="It was written by an older compressed-tensors, or is damaged. Export it again.",
            )
        zero = None if symmetric else tensors["weight_zero_point"]
        return from_compressed_tensors(words, tensors["weight_scale"], zero, bits, width)

    suffixes = ("weight_packed", "weight_scale", "weight_shape")
    return suffixes if symmetric else (*suffixes, "weight_zero_point"), pack


def _gptq(path: str, quantization: Mapping[str, Any]) -> tuple[tuple[str, ...], Pack]:
    bits, group = check_bits(path, quantization.get("bits")), quantization.get("group_size", ROW)
    version = {"gptq": 1, "gptq_v2": 2}.get(str(quantization.get("checkpoint_format", "gptq")))
    if version is None:
        raise ModelError(
            f"'{path}' is gptq with checkpoint_format {quantization['checkpoint_format']!r}; known: gptq, gptq_v2.",
            hint=ANOTHER,
        )

    def pack(name: str, tensors: Mapping[str, Tensor]) -> PackedWeight:
        order = tensors["g_idx"]
        width = order.numel()
        size = width if group == ROW else group
        if not torch.equal(order.long(), torch.arange(width, device=order.device) // size):
            raise ModelError(
                f"'{path}': {name} has its input features in another order (desc_act), which packed weights lack.",
                hint=ANOTHER,
            )
        return from_gptq(tensors["qweight"], tensors["qzeros"], tensors["scales"], bits, width, version=version)

    return ("qweight", "qzeros", "scales", "g_idx"), pack
