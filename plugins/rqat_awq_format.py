"""Exporter `awq`: the 4-bit layout of AutoAWQ's GEMM kernels, which vLLM and transformers (with gptqmodel) load.

Per layer:

    qweight  (I, O / 8) int32    codes along the output features, eight to a word in the order 0 2 4 6 1 3 5 7
    qzeros   (G, O / 8) int32    zero points likewise, as they are
    scales   (G, O) float16

Any quantizer's weights can be written so: the format is called after a method, but holds plain groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rqat

if TYPE_CHECKING:
    import torch

BITS, WORD = 4, 8
"""The one width of the format, and how many codes a word has."""

HEAD = "lm_head"


class Options(rqat.Options):
    """Options of `awq`: none."""

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """The format holds one scheme of 4 bits, and output features that fill whole words."""
        schemes = dict.fromkeys(context.schemes.values())
        if len(schemes) > 1:
            text = f"'awq' holds one scheme for all layers, not {', '.join(map(str, schemes))}."
            yield rqat.Problem(text, "Export as compressed-tensors, or use one scheme.", "format")
        for scheme in schemes:
            if scheme.bits != BITS:
                yield rqat.Problem(f"'awq' holds 4 bits, not {scheme}.", "Export in another format.", "format")
        if HEAD in context.schemes:
            text = "'awq' has no quantized head."
            yield rqat.Problem(text, f"Add it to quantize.skip: [{HEAD}], or export in another format.", "format")
        shapes = context.model.linears if context.model else {}
        odd = {name: shapes[name][0] for name in context.schemes if name in shapes and shapes[name][0] % WORD}
        for name, out in list(odd.items())[:1]:
            text = f"{name} has {out} output features; the awq format takes multiples of {WORD}."
            yield rqat.Problem(
                text, "Leave the layer out with quantize.skip, or export as compressed-tensors.", "format"
            )


class Awq(rqat.Exporter):
    """Writes `quant_method: awq`, `version: gemm`."""

    loader_packages = ("gptqmodel",)
    # On the CPU gptqmodel's kernel computes in 16 bits, whatever the model's dtype is; measured 0.005 of the largest
    # logit.
    loader_tolerance = 0.02

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`.

        Raises:
            ModelError: the layer's shape or width is not the format's.
        """
        import torch

        from rqat_kernels.packing import pack_awq

        scheme, (out, _) = weight.scheme, weight.codes.shape
        assert scheme is not None
        if scheme.bits != BITS or out % WORD:
            raise rqat.ModelError(
                f"{name} has {out} output features at {scheme}; awq holds 4 bits and multiples of {WORD}.",
                hint="Leave the layer out with quantize.skip, or export as compressed-tensors.",
            )
        return {
            f"{name}.qweight": pack_awq(weight.codes.T.contiguous()),
            f"{name}.qzeros": pack_awq(weight.zero.T.contiguous()),
            f"{name}.scales": weight.scale.T.to(torch.float16).contiguous(),
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `Exporter`."""
        from rqat_kernels.packing import unpack_awq

        codes = unpack_awq(tensors[f"{name}.qweight"]).T.contiguous()
        zero = unpack_awq(tensors[f"{name}.qzeros"]).T.contiguous()
        return rqat.QuantizedWeight(codes, tensors[f"{name}.scales"].float().T.contiguous(), zero, scheme=scheme)

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> dict[str, Any]:
        """See `Exporter`.

        Skipped layers are named twice: gptqmodel reads `dynamic` alone, all others `modules_to_not_convert`.

        Raises:
            ModelError: layers of different schemes, which the format cannot hold.
        """
        for problem in self.options.check(rqat.Context(schemes=layers)):
            raise rqat.ModelError(problem.text, hint=problem.hint)
        inside = [name for name in skipped if name != HEAD]
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": next(iter(layers.values())).group,
            "zero_point": True,
            "modules_to_not_convert": list(skipped),
            **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in inside}} if inside else {}),
        }


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "awq",
        options=Options,
        load=":Awq",
        summary="AWQ GEMM safetensors for vLLM and gptqmodel; 4 bits, by any quantizer",
        paper="2306.00978",
    )
