"""Exporter `mlx`: the folder that MLX's `mlx_lm` loads, packed at 2, 3, 4 and 8 bits, embedding and head included.

Per layer, with `W = I * bits / 32` words and groups of 32, 64 or 128 (wider ones are written as several alike):

    weight   (O, W) uint32    a bit stream along the input features
    scales   (O, G) float16
    biases   (O, G) float16   -zero * scale: MLX computes `code * scale + bias`

A scale has eight significant bits and a zero point as many as a code, so that their product is exact in float16 at 2
and 3 bits, and with a fixed zero point, which is a power of two. At 4 and 8 bits it is rounded; the export stage
measures by how much. `config.json` names group size and bits under `quantization`, and those of every layer that has
others.

Read back (`decode`), also what `mlx_lm.convert -q` wrote: its scales are negative where a group's largest value is
positive, and its biases are whole numbers of steps before both are rounded to 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rqat

if TYPE_CHECKING:
    import torch

GROUPS = (128, 64, 32)
"""Sizes that MLX has, the one that takes least first."""

WHOLE = {2: 1 / 8, 3: 1 / 8, 4: 1 / 8, 8: 1 / 2}
"""How far a bias may be from a whole number of steps, by bits, to be taken for one.

bfloat16 rounds it and its scale by a 512th each: 0.06 of a step at 4 bits, and at 8, where mlx_lm's bias is a weight,
and so not rounded, up to a half.
"""

FAMILIES = ("gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3")
"""Families of which mlx_lm was seen to compute what transformers does, by `model_type`."""

BLIND = ("mistral", "phi3", "qwen2", "qwen3")
"""Those that have windows, and of which mlx_lm has every block see all tokens."""

PLAIN = ("gemma3_text", "qwen3")
"""Those to whose attention mlx_lm gives no biases, whatever config.json says."""

EVERY = 6
"""Of Gemma 3: one block of so many sees all tokens where config.json does not say."""


class Options(rqat.Options):
    """Options of `mlx`.

    Attributes:
        dtype: of scales, biases and all that is not quantized, and so what MLX computes in. bfloat16 has the range of
            the original and rounds the biases of asymmetric weights more; float16 holds those of 2 and 3 bits exactly.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """Families and groups that MLX has."""
        if context.model is None:
            return
        if context.model.model_type not in FAMILIES:
            text = f"'{context.model.model_type}' is not a family that mlx_lm was seen to load."
            yield rqat.Problem(text, f"Known: {', '.join(FAMILIES)}.", "format")
        for text, fix in _computed_otherwise(context.model.model_type, context.model.config):
            yield rqat.Problem(f"mlx: {text}", fix, "format")
        shapes = context.model.linears
        odd = {
            scheme: shapes[name][1]
            for name, scheme in context.schemes.items()
            if name in shapes and not group_of(scheme, shapes[name][1])
        }
        for scheme, width in odd.items():
            text = f"'mlx' cannot write {scheme} with {width} input features: its groups are 32, 64 or 128."
            yield rqat.Problem(text, "Use one of these, a multiple, or another format.", "format")


def _computed_otherwise(family: str, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of what config.json asks for, what mlx_lm passes over in silence, and what to do."""
    window, longest, fix = config.get("sliding_window"), config.get("max_position_embeddings"), "Use another format."
    used = config.get("use_sliding_window", family in ("mistral", "phi3"))
    if family in BLIND and window and used and window < (longest or 0):
        text = f"mlx_lm reads every token where this model has a sliding window of {window}."
        yield text, "Leave the window out of config.json, or export in another format."
    if family == "gemma3_text" and not full_every(config):
        yield "mlx_lm has every n-th block see all tokens; layer_types of this model are others.", fix
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("longrope", "su"):
        yield "mlx_lm takes the long factors of longrope for short texts as well.", fix
    elif family == "phi3" and kind != "default":
        yield f"mlx_lm reads no rotary embeddings of the kind '{kind}' in phi3.", fix
    if family in PLAIN and config.get("attention_bias"):
        yield f"mlx_lm has no biases in the attention of {family}, which this model has (attention_bias).", fix
    act, own = ("hidden_activation", "gelu_pytorch_tanh") if family == "gemma3_text" else ("hidden_act", "silu")
    if config.get(act, own) not in (own, "swish" if own == "silu" else own):
        yield f"mlx_lm computes {own} where this model has {act} {config[act]}.", fix


def full_every(config: Mapping[str, Any]) -> int:
    """Which blocks of a Gemma 3 see all tokens: every n-th; 0 where `layer_types` are not of this kind."""
    kinds, blocks = config.get("layer_types"), config.get("num_hidden_layers", EVERY)
    if not kinds:
        every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or EVERY)
        return every if every <= blocks else 0
    full = [number for number, kind in enumerate(kinds, 1) if kind == "full_attention"]
    return full[0] if full and full == [*range(full[0], len(kinds) + 1, full[0])] else 0


def _too_large(name: str) -> rqat.ModelError:
    return rqat.ModelError(
        f"{name} has values beyond float16.", hint="Set export.dtype to bfloat16 (--format mlx:dtype=bfloat16)."
    )


def group_of(scheme: rqat.Scheme, width: int) -> int:
    """MLX's group size for a layer of `width` input features; 0 where none of its sizes divides the groups."""
    return next((size for size in GROUPS if scheme.group_size(width) % size == 0), 0)


class Mlx(rqat.Exporter):
    """Writes packed safetensors and `quantization` in config.json."""

    serving = """\
`pip install mlx-lm` on a Mac, `pip install "mlx[cpu]" mlx-lm` on Linux.
"""

    def write(self, folder: Path, reader: rqat.Reader, layers: Mapping[str, rqat.Scheme]) -> None:
        """See `Exporter`."""
        reader.save(folder, self, layers)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["quantization"] = self._quantization(reader, layers)
        config["dtype"] = config["torch_dtype"] = self.options.dtype
        if config["model_type"] == "gemma3_text":
            config["sliding_window_pattern"] = full_every(config)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def tensors(self, name: str, weight: rqat.QuantizedWeight) -> dict[str, torch.Tensor]:
        """See `Exporter`.

        Raises:
            ModelError: groups that MLX does not have, or values that float16 has no room for.
        """
        import torch

        from rqat_kernels.packing import pack

        scheme = weight.scheme
        assert scheme is not None
        width, dtype = weight.codes.shape[1], getattr(torch, self.options.dtype)
        size = group_of(scheme, width)
        if not size:
            raise rqat.ModelError(f"mlx has no groups for {name}, {scheme}.", hint="Export it in another format.")
        alike = scheme.group_size(width) // size
        biases = -weight.zero.float() * weight.scale
        if max(float(biases.abs().max()), float(weight.scale.max())) > torch.finfo(dtype).max:
            raise _too_large(name)
        return {
            f"{name}.weight": pack(weight.codes, scheme.bits).view(torch.uint32),
            f"{name}.scales": weight.scale.repeat_interleave(alike, 1).to(dtype),
            f"{name}.biases": biases.repeat_interleave(alike, 1).to(dtype),
        }

    def other(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """See `Exporter`: in one dtype, since MLX would compute in float32 where two meet.

        Raises:
            ModelError: a value that float16 has no room for.
        """
        import torch

        narrow = tensor.to(getattr(torch, self.options.dtype))
        if bool(narrow.isinf().any()) and not bool(tensor.isinf().any()):
            raise _too_large(name)
        return narrow

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `Exporter`: codes and scales as they are, but for their signs; zero points made whole.

        Raises:
            ModelError: biases between two steps, or beyond the codes.
        """
        import torch

        from rqat_kernels.packing import unpack

        words, scale, bias = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
        width, top = words.shape[1] * 32 // scheme.bits, scheme.max_code
        codes = unpack(words.view(torch.int32), scheme.bits, width)
        scale, negative = scale.float(), scale < 0
        exact = torch.where(scale == 0, bias.float(), -bias.float() / scale)  # of a group of zeros both are 0
        zero = exact.round()
        apart = float((exact - zero).abs().max())
        zero = torch.where(negative, top - zero, zero)
        if not apart <= WHOLE[scheme.bits] or bool((zero < 0).any()) or bool((zero > top).any()):
            raise rqat.ModelError(
                f"mlx: {name} has biases that are no zero points: {apart:.2g} of a step from a whole one at most, and "
                f"from {float(zero.min()):g} to {float(zero.max()):g} of 0 to {top}.",
                hint="Begin with the model it was made from.",
            )
        codes = torch.where(negative.repeat_interleave(width // scale.shape[1], 1), top - codes, codes)
        return rqat.QuantizedWeight(codes, scale.abs(), zero.to(torch.uint8), scheme=scheme)

    def values(self, folder: Path, reader: rqat.Reader) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Exporter`: `code * scale + bias` of what is in the files."""
        import torch
        from safetensors import safe_open

        from rqat_kernels.packing import unpack

        files = [safe_open(path, framework="pt") for path in sorted(folder.glob("model*.safetensors"))]
        holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (it cannot be iterated)
        for name, scheme in reader.layers.items():
            words, scale, bias = (
                holder[f"{name}.{part}"].get_tensor(f"{name}.{part}") for part in ("weight", "scales", "biases")
            )
            width = words.shape[1] * 32 // scheme.bits
            codes = unpack(words.view(torch.int32), scheme.bits, width)
            each = width // scale.shape[1]
            values = codes * scale.float().repeat_interleave(each, 1) + bias.float().repeat_interleave(each, 1)
            yield name, values

    def config(self, layers: Mapping[str, rqat.Scheme], skipped: Sequence[str]) -> None:
        """See `Exporter`: there is none, but what `write` adds."""

    def _quantization(self, reader: rqat.Reader, layers: Mapping[str, rqat.Scheme]) -> dict[str, Any]:
        """Group size and bits of most layers, and of every layer that has others."""
        each = {
            name: (group_of(scheme, reader.layer(name).codes.shape[1]), scheme.bits) for name, scheme in layers.items()
        }
        usual = max(dict.fromkeys(each.values()), key=list(each.values()).count)
        others = {
            name: {"group_size": size, "bits": bits} for name, (size, bits) in each.items() if (size, bits) != usual
        }
        return {"group_size": usual[0], "bits": usual[1], "mode": "affine", **others}


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register(
        "mlx",
        options=Options,
        load=":Mlx",
        embedding=True,
        summary="packed safetensors for MLX on Macs, 2, 3, 4 and 8 bits, the embedding included",
    )
