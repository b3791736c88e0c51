"""Exporter `gguf`: one file for llama.cpp, and for all that is built on it, with the trained weights exactly.

llama.cpp has no type with the grid of 2 and 3 bits, but wider types hold its values without loss: blocks of 32 weights
with a float16 scale, of which several share one group's.

    scheme                              type    values                    bits of file
    2 and 3 bits; 4 bits symmetric      Q4_0    (-8 ... 7) * scale        4.5
    4 bits asymmetric                   Q5_0    (-16 ... 15) * scale      5.5
    8 bits symmetric                    Q8_0    (-128 ... 127) * scale    8.5
    8 bits asymmetric, other groups     F16     rounded to 11 bits        16

Embedding and head, where a scheme names them, have a type of their own; unquantized tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import rqat

BLOCK = 32
"""Weights that share a scale in every type used here."""

FAMILIES = ("llama", "qwen2", "qwen3")
"""Families by `model_type`, which is what llama.cpp calls them, too."""

ROTARY = ("default", "llama3")
"""Kinds of rotary embedding that are written."""


class Options(rqat.Options):
    """Options of `gguf`.

    Attributes:
        name: of the file, without its ending.
    """

    name: str = "model"

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
        if config.get("sliding_window") and config.get("use_sliding_window"):
            text = "gguf: llama.cpp reads every token where this model has a sliding window."
            yield rqat.Problem(text, "Leave the window out of config.json, or export in another format.", "format")
        if context.tokenizer is not None:
            from .tokenizer import contents_of, cutting

            try:
                cutting(contents_of(context.tokenizer()))
            except rqat.RqatError as error:
                yield rqat.Problem(error.message, error.hint, "format")
        wide: dict[rqat.Scheme, int] = {}
        for name, scheme in context.schemes.items():
            if name in context.model.linears and not type_of(scheme, context.model.linears[name][1]):
                wide[scheme] = wide.get(scheme, 0) + 1
        for scheme, count in wide.items():
            text = f"gguf has no type that holds {scheme}: {count} layers are written in 16 bits."
            fix = "Exact are 2, 3 and 4 bits and w8-sym, with groups that are multiples of 32."
            yield rqat.Problem(text, fix, "format", level="warning")


def rotary_kind(config: dict[str, object] | object) -> str:
    """The kind of rotary embedding that a config.json asks for; "default" where it says nothing."""
    given = config if isinstance(config, dict) else {}
    found = given.get("rope_parameters") or given.get("rope_scaling") or {}
    return str(found.get("rope_type", found.get("type", "default"))) if isinstance(found, dict) else "default"


def type_of(scheme: rqat.Scheme, width: int) -> str:
    """The type that holds a layer of `width` input features exactly; "" where there is none."""
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
        summary="one GGUF file for llama.cpp: exact weights in its types of 4, 5 and 8 bits, the embedding included",
    )
