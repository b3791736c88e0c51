"""An exporter: packed codes, scales and zero points under names of its own, and a config that says so."""

from typing import Any

import rqat


class Options(rqat.Options):
    """Options of `my-format`."""

    def check(self, context: rqat.Context):
        """Told by `rqat plan`: codes are packed into words of 32 bits."""
        widths = context.model.linears if context.model else {}
        for name, scheme in context.schemes.items():
            if widths.get(name, (0, 0))[1] % 32:
                yield rqat.Problem(f"{name} at {scheme} does not fill whole words", "Skip it: quantize.skip.", "format")
                return


class MyFormat(rqat.Exporter):
    serving = "No server reads it; it is an example."

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, Any]:
        from rqat_kernels.packing import pack

        return {
            f"{name}.packed": pack(weight.codes, weight.scheme.bits),
            f"{name}.scale": weight.scale.contiguous(),
            f"{name}.zero": weight.zero.contiguous(),
        }

    def decode(self, name: str, tensors: Any, scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        from rqat_kernels.packing import unpack

        scale, words = tensors[f"{name}.scale"], tensors[f"{name}.packed"]
        codes = unpack(words, scheme.bits, words.shape[1] * 32 // scheme.bits)
        return rqat.QuantizedWeight(codes, scale, tensors[f"{name}.zero"], scheme=scheme)

    def config(self, layers: Any, skipped: Any) -> dict[str, Any]:
        return {"quant_method": "my-format", "schemes": {name: str(scheme) for name, scheme in layers.items()}}


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    register("my-format", options=Options, load=":MyFormat", summary="packed codes under names of its own")
