"""Exporter `bf16`: the quantized model as an ordinary 16-bit checkpoint that everything loads.

No smaller than the model before quantization; for servers and libraries that read no packed format, and for comparing
what a server makes of packed weights with what they stand for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import rqat

if TYPE_CHECKING:
    import torch


class Options(rqat.Options):
    """There are none."""

    def bits_in_file(self, scheme: rqat.Scheme, in_features: int) -> float:
        """See `rqat.Options`."""
        return 16.0


class Bf16(rqat.Exporter):
    """Writes `w_hat`, rounded once to bfloat16, and no `quantization_config`."""

    loader_packages = ()
    loader_dtype = "bfloat16"
    serving = """\
Weights take 16 bits each, on disk and in memory: this format is for readers of no other.
"""

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`."""
        import torch

        assert weight.scheme is not None
        return {f"{name}.weight": rqat.grid_of(weight.scheme).decode_layer(weight).to(torch.bfloat16)}

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> None:
        """See `Exporter`: there is none."""


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "bf16",
        options=Options,
        load=":Bf16",
        grids=None,
        summary="plain 16-bit safetensors, for everything that loads no packed weights",
    )
