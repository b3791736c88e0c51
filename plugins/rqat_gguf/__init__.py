"""Exporter `gguf`: one file for llama.cpp, and for all that is built on it, with the trained weights exactly.

llama.cpp has no type with the grid of 2 and 3 bits, but wider types hold its values without loss: blocks of 32 weights
with a float16 scale, of which several share one group's.

    scheme                              type    values                    bits of file
    2 and 3 bits; 4 bits symmetric      Q4_0    (-8 ... 7) * scale        4.5
    4 bits asymmetric                   Q5_0    (-16 ... 15) * scale      5.5
    8 bits symmetric                    Q8_0    (-128 ... 127) * scale    8.5
    8 bits asymmetric, other groups     F16     rounded to 11 bits        16

Embedding and head, where a scheme names them, have a type of their own; unquantized tensors stay as they are.

With `types: k`, layers of 2 and 3 bits whose rows are multiples of 256 take llama.cpp's K types, Q2_K (2.6 bits of
file) and Q3_K (3.4). These have scales of 4 and 6 bits and at 3 bits no zero points, so that weights are rounded anew:
what that costs is measured, and told by the export.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Literal

import rqat

BLOCK = 32
"""Weights that share a scale in every type used here."""

SUPER, PART = 256, 16
"""Weights in a block of the K types, and of those that share a scale."""

K_BITS = {2: "Q2_K", 3: "Q3_K"}
K_TYPES = tuple(K_BITS.values())

BITS_IN_FILE = {"Q4_0": 4.5, "Q5_0": 5.5, "Q8_0": 8.5, "Q2_K": 2.625, "Q3_K": 3.4375, "": 16.0}
"""Of a weight, by its type; "" is none that holds it."""

FACTS = 4096
"""Bytes of what a file says of the model beside its tokenizer, at most."""

FAMILIES = ("llama", "qwen2", "qwen3")
"""Families by `model_type`, which is what llama.cpp calls them, too."""

ACTS = ("silu", "swish")
"""Names of the one function that llama.cpp has between the layers of an MLP of these families."""

ROTARY = ("default", "llama3")
"""Kinds of rotary embedding that are written."""


class Options(rqat.Options):
    """Options of `gguf`.

    Attributes:
        name: of the file, without its ending.
        types: `exact` keeps every weight; `k` makes files of 2 and 3 bits smaller (2.6 and 3.4 bits in place of 4.5)
            where rows are multiples of 256, and rounds their weights anew: not at all at 2 bits where one scale spans
            256 weights, by 1 % of a layer at w2g128, by 5 % in groups of 16.
    """

    name: str = "model"
    types: Literal["exact", "k"] = "exact"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """Families, rotary embeddings and windows that llama.cpp computes alike; schemes that no type holds."""
        if find_spec("gguf") is None:
            yield rqat.Problem("the package gguf is not installed.", "Run: pip install 'rqat[gguf]'.", "format")
        if not self.name or set(self.name) & set("/\\\0"):
            yield rqat.Problem(f"'{self.name}' is no name of a file.", "Leave it out: model.gguf.", "name")
        if context.model is None:
            return
        family, config = context.model.model_type, context.model.config
        if family not in FAMILIES:
            fix = f"Known: {', '.join(FAMILIES)}. Export as bf16 and convert that with llama.cpp's own script."
            yield rqat.Problem(f"'{family}' is not written as gguf.", fix, "format")
        kind = rotary_kind(config)
        if kind not in ROTARY:
            fix = "Export as bf16 and convert that with llama.cpp's own script."
            yield rqat.Problem(f"gguf: rotary embeddings of the kind '{kind}' are not written.", fix, "format")
        if family == "qwen3" and config.get("attention_bias"):
            text = "gguf: llama.cpp has no biases in the attention of qwen3, which this model has (attention_bias)."
            yield rqat.Problem(text, "Export in another format.", "format")
        if config.get("hidden_act", "silu") not in ACTS:
            text = f"gguf: llama.cpp computes silu where this model has hidden_act {config['hidden_act']}."
            yield rqat.Problem(text, "Export in another format.", "format")
        if config.get("sliding_window") and config.get("use_sliding_window"):
            text = "gguf: llama.cpp reads every token where this model has a sliding window."
            yield rqat.Problem(text, "Leave the window out of config.json, or export in another format.", "format")
        if context.tokenizer is not None:
            from .tokenizer import contents_of, cutting

            try:
                cutting(contents_of(context.tokenizer()))
            except rqat.RqatError as error:
                yield rqat.Problem(error.message, error.hint, "format")
        yield from self._types(context, context.model.linears)

    def bits_in_file(self, scheme: rqat.Scheme, in_features: int) -> float:
        """See `rqat.Options`."""
        return BITS_IN_FILE[type_of(scheme, in_features, self.types)]

    def bytes_beside(self, context: rqat.Context) -> int:
        """See `rqat.Options`: the vocabulary, which of a small model is a share that counts."""
        if context.tokenizer is None or context.model is None:
            return 0
        from .tokenizer import bytes_of

        return FACTS + bytes_of(context.tokenizer(), context.model.vocab)

    def _types(self, context: rqat.Context, shapes: Mapping[str, tuple[int, int]]) -> Iterator[rqat.Problem]:
        """What is rounded anew, what K types cannot have, and what no type holds."""
        schemes = {name: scheme for name, scheme in context.schemes.items() if name in shapes}
        kinds = {name: type_of(scheme, shapes[name][1], self.types) for name, scheme in schemes.items()}
        anew = [name for name, kind in kinds.items() if kind in K_TYPES]
        kept = [name for name, scheme in schemes.items() if scheme.bits in K_BITS and name not in anew]
        if anew:
            text = f"gguf: types: k rounds the weights of {len(anew)} layers anew; the export says by how much."
            yield rqat.Problem(text, "Leave it out for a larger file with the very weights.", "types", level="warning")
        if kept and self.types == "k":
            text = f"gguf: types: k leaves {len(kept)} layers of 2 and 3 bits as they are, such as {kept[0]}."
            fix = "K types want rows of a multiple of 256 and groups of a multiple of 16."
            yield rqat.Problem(text, fix, "types", level="warning")
        for scheme, count in Counter(schemes[name] for name, kind in kinds.items() if not kind).items():
            text = f"gguf has no type that holds {scheme}: {count} layers are written in 16 bits."
            fix = "Exact are 2, 3 and 4 bits and w8-sym, with groups that are multiples of 32."
            yield rqat.Problem(text, fix, "format", level="warning")


def rotary_kind(config: dict[str, object] | object) -> str:
    """The kind of rotary embedding that a config.json asks for; "default" where it says nothing."""
    given = config if isinstance(config, dict) else {}
    found = given.get("rope_parameters") or given.get("rope_scaling") or {}
    return str(found.get("rope_type", found.get("type", "default"))) if isinstance(found, dict) else "default"


def type_of(scheme: rqat.Scheme, width: int, types: str = "exact") -> str:
    """The type for a layer of `width` input features: the one that holds it exactly, "" where there is none.

    Args:
        types: as in `Options`; with "k" one of `K_TYPES` where it can be.
    """
    if types == "k" and scheme.bits in K_BITS and not width % SUPER and not scheme.group_size(width) % PART:
        return K_BITS[scheme.bits]
    if scheme.group_size(width) % BLOCK or width % BLOCK:
        return ""
    if scheme.bits < 4 or (scheme.bits == 4 and scheme.symmetric):
        return "Q4_0"
    if scheme.bits == 4:
        return "Q5_0"
    return "Q8_0" if scheme.symmetric else ""


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "gguf",
        options=Options,
        load=".exporter:Gguf",
        embedding=True,
        summary="one GGUF file for llama.cpp: exact weights in its types of 4, 5 and 8 bits, or smaller in its K types",
    )
