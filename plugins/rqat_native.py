"""Exporter `rqat`: a packed checkpoint of our own, in which every quantized weight takes the bits of its scheme.

The embedding is among them, which no format of servers packs in a way that transformers loads. What reads it is rqat:
`rqat eval`, `rqat generate`, `rqat.load_packed`. Per layer, with `W = ceil(I * bits / 32)` and
`W' = ceil(O * bits / 32)`:

    shape  (2,) int64       O, I
    codes  (O, W) int32     a bit stream along the input features
    scale  (O, G) bfloat16, float16 where that is needed to hold it exactly
    zero   (W', G) int32    a bit stream along the output features; (1,) where every group has the same one;
           (O, G) float32   where the grid's zero points are not whole

`quantization_config` names every layer with its scheme. A head that is tied to the embedding is not stored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rqat

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Of this layout."""


class Native(rqat.Exporter):
    """Writes `quant_method: rqat`."""

    serving = """\
```shell
rqat eval TASK THIS_FOLDER
rqat generate THIS_FOLDER "PROMPT"
```

From Python, `rqat.load_packed("THIS_FOLDER")` gives a Hugging Face model on packed weights. Servers do not read this
format; export as `compressed-tensors` or `gptq` for them, with an embedding of 16 bits.
"""

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`."""
        import torch

        from rqat_kernels.packing import pack

        assert weight.scheme is not None
        grid, bits, zero = rqat.grid_of(weight.scheme), weight.scheme.bits, weight.zero
        if grid.fixed_zero:
            zero = zero.flatten()[:1].clone()
        elif grid.whole_zeros:
            zero = pack(zero, bits, dim=0)
        widths = (torch.bfloat16, torch.float16, torch.float32)
        exact = next(dtype for dtype in widths if torch.equal(weight.scale.to(dtype).float(), weight.scale))
        return {
            f"{name}.shape": torch.tensor(weight.codes.shape),
            f"{name}.codes": pack(weight.codes, bits),
            f"{name}.scale": weight.scale.to(exact),
            f"{name}.zero": zero,
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `Exporter`."""
        from rqat_kernels.packing import unpack

        grid, zero, scale = rqat.grid_of(scheme), tensors[f"{name}.zero"], tensors[f"{name}.scale"].float()
        out, width = tensors[f"{name}.shape"].tolist()
        if grid.fixed_zero:
            zero = zero.expand(scale.shape).contiguous()
        elif grid.whole_zeros:
            zero = unpack(zero, scheme.bits, out, dim=0)
        return rqat.QuantizedWeight(unpack(tensors[f"{name}.codes"], scheme.bits, width), scale, zero, scheme=scheme)

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> dict[str, Any]:
        """See `Exporter`."""
        spelled = {name: str(scheme) for name, scheme in layers.items()}
        return {"quant_method": "rqat", "version": VERSION, "layers": spelled}


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "rqat",
        load=":Native",
        grids=None,
        embedding=True,
        summary="packed safetensors for rqat itself, the embedding included; any grid",
    )
