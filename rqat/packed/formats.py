"""Finds the quantized layers of a checkpoint and packs them for the kernels, whatever format they are stored in.

    rqat's own steps       quantized.safetensors: codes, scales and zero points
    rqat                   what the exporter of this name writes
    compressed-tensors     pack-quantized, groups or rows, symmetric or not
    gptq                   versions 1 and 2, groups in order
    awq                    GEMM, 4 bits

Nothing is dequantized on the way, and no value changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rqat_kernels.packing import PackedWeight, from_awq, from_compressed_tensors, from_gptq, words_for

from ..contracts import QuantizedWeight
from ..errors import ModelError
from ..grids import grid_of
from ..model.checkpoint import scheme_of
from ..model.config_groups import group_of, unread
from ..model.layers import ENDS
from ..scheme import ROW, Scheme

ANOTHER = "Use --backend transformers."

PACKED_BITS = (2, 3, 4)
"""Widths that kernels read."""

Pack = Callable[[str, Mapping[str, Tensor]], PackedWeight]
"""Makes the packed weight of the layer called so out of its tensors, by suffix ("qweight")."""


def pack_layer(path: str, layer: QuantizedWeight, device: torch.device) -> PackedWeight:
    """Packs a layer of one of rqat's own steps, by its own scheme.

    Raises:
        ModelError: a grid or a width that no kernel reads.
    """
    scheme = scheme_of(layer)
    check_scheme(path, scheme)
    layer = layer.to(device)
    return PackedWeight.from_codes(layer.codes, layer.scale, layer.zero, scheme.bits)


def can_pack(scheme: Scheme) -> bool:
    """Whether kernels read weights of a scheme."""
    return scheme.bits in PACKED_BITS and grid_of(scheme).uniform


def check_native(path: str, quantization: Mapping[str, Any]) -> None:
    """Refuses a folder of the format `rqat` with layers that no kernel reads; its two ends may be of any scheme.

    Raises:
        ModelError: a grid or a width that no kernel reads.
    """
    for name, spelled in (quantization.get("layers") or {}).items():
        if name not in ENDS:
            check_scheme(path, Scheme.parse(spelled))


def check_scheme(path: str, scheme: Scheme) -> None:
    """Refuses a scheme that no kernel reads.

    Raises:
        ModelError: a grid or a width that no kernel reads.
    """
    if not grid_of(scheme).uniform:
        raise ModelError(f"'{path}' is on the grid '{scheme.grid}'; packed weights are uniform.", hint=ANOTHER)
    check_bits(path, scheme.bits)


def check_bits(path: str, bits: Any) -> int:
    """`bits`, unless it is a width that no kernel reads.

    Raises:
        ModelError: not 2, 3 or 4 bits.
    """
    if bits not in PACKED_BITS:
        raise ModelError(f"'{path}' has weights of {bits} bits; packed weights have 2, 3 or 4.", hint=ANOTHER)
    return int(bits)


@dataclass(frozen=True)
class Format:
    """How a format is read.

    Attributes:
        key: the suffix of a tensor that every quantized layer has.
        suffixes: those of all tensors of the layer called so.
        pack: the packing.
    """

    key: str
    suffixes: Callable[[str], tuple[str, ...]]
    pack: Pack


def reader(path: str, quantization: Mapping[str, Any]) -> Format:
    """How to read what is stored as `quantization`, the `quantization_config` of config.json, says.

    Raises:
        ModelError: a format, or a variant of one, that is not read here.
    """
    method = str(quantization.get("quant_method", ""))
    if method == "compressed-tensors":
        return _compressed_tensors(path, quantization)
    if method == "gptq":
        return _gptq(path, quantization)
    if method == "awq":
        return _awq(path, quantization)
    raise ModelError(
        f"'{path}' is stored as '{method}'; packed weights are read from rqat, compressed-tensors, gptq and awq.",
        hint=ANOTHER,
    )


def _compressed_tensors(path: str, quantization: Mapping[str, Any]) -> Format:
    groups = quantization.get("config_groups")
    found: list[Any] = list(groups.values()) if isinstance(groups, Mapping) else []
    whole = all(isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping) for group in found)
    if quantization.get("format") != "pack-quantized" or not found or not whole:
        raise ModelError(
            f"'{path}' is compressed-tensors with format {quantization.get('format')!r} and {len(found)} groups of "
            "layers; packed weights are read from pack-quantized with at least one.",
            hint=ANOTHER,
        )
    for group in found:
        _check_group(path, group)

    def weights(name: str) -> Mapping[str, Any]:
        try:
            group = group_of(name, quantization)
        except (ValueError, TypeError) as error:
            raise ModelError(f"'{path}': config_groups of config.json: {error}.", hint=ANOTHER) from error
        if group is None:
            raise ModelError(f"'{path}': {name} is in no group of layers of config.json.", hint=ANOTHER)
        given: Mapping[str, Any] = group["weights"]
        return given

    def suffixes(name: str) -> tuple[str, ...]:
        own = ("weight_packed", "weight_scale", "weight_shape")
        return own if weights(name).get("symmetric", True) else (*own, "weight_zero_point")

    def pack(name: str, tensors: Mapping[str, Tensor]) -> PackedWeight:
        bits = check_bits(path, weights(name).get("num_bits"))
        width = int(tensors["weight_shape"][1])
        words = tensors["weight_packed"]
        if words.shape[-1] != words_for(width, bits):
            raise ModelError(
                f"'{path}': {name} has {words.shape[-1]} words for {width} values of {bits} bits.",
                hint="It was written by an older compressed-tensors, or is damaged. Export it again.",
            )
        return from_compressed_tensors(words, tensors["weight_scale"], tensors.get("weight_zero_point"), bits, width)

    return Format("weight_packed", suffixes, pack)


def _check_group(path: str, group: Mapping[str, Any]) -> None:
    """Refuses a group of layers that is quantized in a way that is not read here.

    Raises:
        ModelError: saying what is not.
    """
    if wrong := unread(group):
        raise ModelError(f"'{path}' is quantized with {wrong}, which is not read here.", hint=ANOTHER)
    check_bits(path, group["weights"].get("num_bits"))


def _gptq(path: str, quantization: Mapping[str, Any]) -> Format:
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

    return Format("qweight", lambda name: ("qweight", "qzeros", "scales", "g_idx"), pack)


def _awq(path: str, quantization: Mapping[str, Any]) -> Format:
    version, bits = str(quantization.get("version", "gemm")).lower(), quantization.get("bits")
    if version != "gemm" or bits != 4:
        raise ModelError(f"'{path}' is awq of version {version}, {bits} bits; read here is gemm with 4.", hint=ANOTHER)

    def pack(name: str, tensors: Mapping[str, Tensor]) -> PackedWeight:
        return from_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"])

    return Format("qweight", lambda name: ("qweight", "qzeros", "scales"), pack)
