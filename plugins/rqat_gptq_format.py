"""Exporter `gptq`: the checkpoint layout of GPTQ that gptqmodel, vLLM and transformers (with gptqmodel) load.

Per layer, with `W = I * bits / 32` and `W' = O * bits / 32` words:

    qweight  (W, O) int32     codes along the input features
    qzeros   (G, W') int32    zero points along the output features
    scales   (G, O) float16
    g_idx    (I,) int32       group of each input feature

Version 1 ("gptq") stores every zero point minus one, and readers add the one again without agreeing on what happens to
a zero point of 0. Version 2 ("gptq_v2") stores zero points as they are. So symmetric weights are written as version 1,
which everything reads, and asymmetric ones as version 2, which holds all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import rqat

if TYPE_CHECKING:
    import torch

GROUPS = (rqat.ROW, 16, 32, 64, 128, 256, 512, 1024)
"""Group sizes that gptqmodel's kernels accept."""


WORD = 32
"""Codes are stored in words of 32 bits, whole words along both sides of a layer: multiples of 32 fill them."""


class Options(rqat.Options):
    """Options of `gptq`.

    Attributes:
        checkpoint_format: `gptq` is version 1, `gptq_v2` version 2; `auto` is version 1 for symmetric schemes.
    """

    checkpoint_format: Literal["auto", "gptq", "gptq_v2"] = "auto"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """The format holds one scheme, of a group size its readers know, and layers that fill whole words."""
        schemes = dict.fromkeys(context.schemes.values())
        if len(schemes) > 1:
            yield rqat.Problem(
                f"'gptq' holds one scheme for all layers, not {', '.join(map(str, schemes))}.",
                hint="Export as compressed-tensors, or use one scheme.",
                key="format",
            )
        for scheme in schemes:
            if scheme.group not in GROUPS:
                known = ", ".join(map(str, GROUPS[1:]))
                yield rqat.Problem(
                    f"'gptq' cannot write {scheme}: its readers take groups of {known} or a whole row, "
                    f"not {scheme.group}.",
                    hint="Choose another format or scheme.",
                    key="format",
                )
        shapes = context.model.linears if context.model else {}
        odd = [name for name in context.schemes if not _fills_words(*shapes.get(name, (WORD, WORD)))]
        if odd:
            yield _does_not_fill(odd[0], *shapes[odd[0]], more=len(odd) - 1)


class Gptq(rqat.Exporter):
    """Writes `quant_method: gptq`."""

    loader_packages = ("gptqmodel", "optimum")
    # On the CPU its kernels may compute in 16 bits, whatever the model's dtype is. Measured, as a share of the largest
    # logit: 0 with 2 and 3 bits, 0.003 with 4, 0.0003 with 8.
    loader_tolerance = 0.02
    serving = """\
Asymmetric weights are stored as `checkpoint_format: gptq_v2`, which holds every zero point.
"""

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`.

        Raises:
            ModelError: the layer's shape does not fill whole words, or version 1 cannot hold a zero point of 0.
        """
        import torch

        from rqat_kernels.packing import pack

        scheme = weight.scheme
        assert scheme is not None
        out, width = weight.codes.shape
        if not _fills_words(out, width):
            problem = _does_not_fill(name, out, width)
            raise rqat.ModelError(problem.text, hint=problem.hint)
        zero = weight.zero
        if self._stored_format(scheme) == "gptq":
            if not bool(zero.all()):
                raise rqat.ModelError(
                    f"{name} has groups with zero point 0, which version 1 of the gptq format cannot hold.",
                    hint="Set export.checkpoint_format to gptq_v2.",
                )
            zero = zero - 1
        groups = torch.arange(width, dtype=torch.int32, device=zero.device) // scheme.group_size(width)
        return {
            f"{name}.qweight": pack(weight.codes, scheme.bits).T.contiguous(),
            f"{name}.qzeros": pack(zero.T, scheme.bits),
            f"{name}.scales": weight.scale.T.to(torch.float16).contiguous(),
            f"{name}.g_idx": groups,
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `Exporter`."""
        from rqat_kernels.packing import unpack

        scale = tensors[f"{name}.scales"].float().T.contiguous()
        order = tensors.get(f"{name}.g_idx")  # some tools leave it out where features are in order
        width = tensors[f"{name}.qweight"].shape[0] * 32 // scheme.bits if order is None else order.numel()
        zero = unpack(tensors[f"{name}.qzeros"], scheme.bits, scale.shape[0]).T.contiguous()
        if self._stored_format(scheme) == "gptq":
            if bool((zero == 255).any()):
                raise rqat.ModelError(f"{name} has zero points of 256, which no code is.", hint="Dequantize it.")
            zero = zero + 1
        codes = unpack(tensors[f"{name}.qweight"].T, scheme.bits, width)
        return rqat.QuantizedWeight(codes, scale, zero, scheme=scheme)

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> dict[str, Any]:
        """See `Exporter`.

        Every reader leaves the head alone unless `lm_head` says that it is quantized. Other skipped layers are named
        twice: gptqmodel reads `dynamic`, transformers reads `modules_in_block_to_quantize`.

        Raises:
            ModelError: layers of different schemes, which the format cannot hold.
        """
        scheme = next(iter(layers.values()))
        if any(other != scheme for other in layers.values()):
            problem = next(iter(self.options.check(rqat.Context(schemes=layers))))
            raise rqat.ModelError(problem.text, hint=problem.hint)
        config: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": scheme.bits,
            "group_size": scheme.group,
            "desc_act": False,
            "sym": scheme.symmetric,
            "lm_head": "lm_head" in layers,
            "checkpoint_format": self._stored_format(scheme),
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"rqat:{rqat.__version__}"]},
        }
        inside = [name for name in skipped if name != "lm_head"]
        if inside:
            config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in inside}
            config["modules_in_block_to_quantize"] = [list(layers)]
        return config

    def _stored_format(self, scheme: rqat.Scheme) -> str:
        chosen: str = self.options.checkpoint_format
        if chosen == "auto":
            return "gptq" if scheme.symmetric else "gptq_v2"
        return chosen


def _fills_words(out: int, width: int) -> bool:
    return out % WORD == 0 and width % WORD == 0


def _does_not_fill(name: str, out: int, width: int, more: int = 0) -> rqat.Problem:
    others = f", as do {more} more layers" if more else ""
    return rqat.Problem(
        f"{name} has {out} output and {width} input features{others}; the gptq format takes multiples of {WORD}.",
        hint="Leave the layer out with quantize.skip, or export as compressed-tensors.",
        key="format",
    )


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "gptq",
        options=Options,
        load=":Gptq",
        summary="GPTQ safetensors for gptqmodel and vLLM; 2, 3, 4 and 8 bits",
        paper="2210.17323",
    )
