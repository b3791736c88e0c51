"""Exporter `compressed-tensors`: the `pack-quantized` layout of transformers and vLLM.

Per layer, with `W = ceil(I * bits / 32)` and `W' = ceil(O * bits / 32)` words:

    weight_packed      (O, W) int32      codes along the input features
    weight_scale       (O, G) bfloat16, float16 where only that holds it (another tool's)
    weight_zero_point  (W', G) int32     zero points along the output features; not written when symmetric
    weight_shape       (2,) int64        O, I

A group of `ROW` is the strategy "channel". Values are a dense bit stream, which for 3 bits means compressed-tensors
0.18 or newer: older releases put ten values into each word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rqat

if TYPE_CHECKING:
    import torch


class CompressedTensors(rqat.Exporter):
    """Writes `quant_method: compressed-tensors`, `format: pack-quantized`."""

    loader_packages = ("compressed_tensors",)
    serving = """\
With 3 bits, every reader needs compressed-tensors 0.18 or newer. transformers 5.23 and 5.24 load asymmetric weights
of this format only with `quantization_config=CompressedTensorsConfig(dequantize=True)`.
"""

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`."""
        import torch

        from rqat_kernels.packing import pack

        scheme = weight.scheme
        assert scheme is not None

        packed = {
            f"{name}.weight_packed": pack(weight.codes, scheme.bits),
            f"{name}.weight_scale": weight.scale.to(_narrow(weight.scale)),
            f"{name}.weight_shape": torch.tensor(weight.codes.shape),
        }
        if not scheme.symmetric:
            packed[f"{name}.weight_zero_point"] = pack(weight.zero, scheme.bits, dim=0)
        return packed

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `Exporter`."""
        import torch

        from rqat_kernels.packing import unpack

        out, width = tensors[f"{name}.weight_shape"].tolist()
        scale = tensors[f"{name}.weight_scale"].float()
        if scheme.symmetric:
            zero = torch.full(scale.shape, scheme.middle, dtype=torch.uint8, device=scale.device)
        elif (zero := tensors[f"{name}.weight_zero_point"]).dtype == torch.int8:  # not packed, by releases before 0.9
            zero = (zero + scheme.levels // 2).to(torch.uint8)
        else:
            zero = unpack(zero, scheme.bits, out, dim=0)
        codes = unpack(tensors[f"{name}.weight_packed"], scheme.bits, width)
        return rqat.QuantizedWeight(codes, scale, zero, scheme=scheme)

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> dict[str, Any]:
        """See `Exporter`.

        One scheme is a group for everything linear but `ignore`, which every reader understands; several are a group
        each, with the names of its layers.
        """
        by_scheme: dict[rqat.Scheme, list[str]] = {}
        for name, scheme in layers.items():
            by_scheme.setdefault(scheme, []).append(name)
        groups = {
            f"group_{number}": {
                "targets": names if len(by_scheme) > 1 else ["Linear"],
                "weights": _weights(scheme),
                "input_activations": None,
                "output_activations": None,
            }
            for number, (scheme, names) in enumerate(by_scheme.items())
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(skipped),
        }


def _narrow(scale: torch.Tensor) -> torch.dtype:
    import torch

    widths = (torch.bfloat16, torch.float16, torch.float32)
    return next(dtype for dtype in widths if torch.equal(scale.to(dtype).float(), scale))


def _weights(scheme: rqat.Scheme) -> dict[str, Any]:
    """A scheme as the format's readers spell it."""
    per_row = scheme.group == rqat.ROW
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else scheme.group,
        "dynamic": False,
    }


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "compressed-tensors",
        load=":CompressedTensors",
        summary="pack-quantized safetensors for transformers and vLLM, 2 to 8 bits",
    )
