"""The file: what llama.cpp has to know of a model, its tokenizer, and its tensors under the names used there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import rqat

from . import K_TYPES, Options, rotary_kind, type_of
from .blocks import blocks
from .k_blocks import k_blocks
from .tokenizer import add_tokenizer

if TYPE_CHECKING:
    import gguf
    import torch

QUANTIZATION_VERSION = 2
"""Of the types' layout, as llama.cpp counts it."""

FILE_TYPES = {"Q2_K": 10, "Q3_K": 11, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "": 1}
"""What llama.cpp calls a file most of whose layers have a type; "" is 16 bits."""


K_TOLERANCE = 0.1
"""Most that K types may move a layer, as a share of its norm: groups of 16 are moved by 0.055, and llama.cpp's own
rounding moves weights on such a grid by 0.07 to 0.15 (docs/log.md)."""

K_SERVING = """\
Everything built on llama.cpp reads the file. Layers of 2 and 3 bits are in its types Q2_K and Q3_K (2.6 and 3.4 bits)
where their rows allow it, which round them anew: these are near the weights that were trained, and not the same.
"""


@dataclass(frozen=True)
class Outline:
    """A tensor of the file, before it is made.

    Attributes:
        name: as llama.cpp calls it.
        shape, dtype: of the array that `make` gives, which is bytes where `kind` is a type of blocks.
        kind: its type; None for what numpy's says.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: Any
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, make: Callable[[], tuple[np.ndarray, Any]]) -> Outline:
        """Of a tensor that is made to see what it is, and again when it is written."""
        array, kind = make()
        return cls(name, array.shape, array.dtype, kind, lambda: make()[0])


class Gguf(rqat.Exporter):
    """Writes `<name>.gguf`."""

    serving = """\
Everything built on llama.cpp reads the file. Its weights are those of the model to the bit; how many bits each takes
there is llama.cpp's: 4.5 for 2, 3 and symmetric 4 bits, 5.5 for asymmetric 4, 8.5 for symmetric 8.
"""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if options.types == "k":
            self.rounds_anew = K_TOLERANCE
            self.serving = K_SERVING

    def write(self, folder: Path, reader: rqat.Reader, layers: Mapping[str, rqat.Scheme]) -> None:
        """See `Exporter`; the file says first where every tensor lies, then one at a time is in memory.

        Raises:
            ModelError: a tokenizer that llama.cpp does not have, a tensor without a name there.
        """
        import gguf

        config = reader.config
        writer = gguf.GGUFWriter(folder / f"{self.options.name}.gguf", config.model_type)
        _add_facts(writer, config, layers, self.options.types)
        add_tokenizer(writer, reader.tokenizer, config.vocab_size)
        waiting = []
        for told in self._outlines(reader, layers):
            writer.add_tensor_info(told.name, told.shape, told.dtype, told.nbytes, told.kind)
            waiting.append(told.make)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for make in waiting:
                writer.write_tensor_data(make())
        finally:
            writer.close()

    def _outlines(self, reader: rqat.Reader, layers: Mapping[str, rqat.Scheme]) -> Iterator[Outline]:
        """What every tensor is going to be; of those that a type holds exactly none is read for it."""
        import gguf

        config = reader.config
        arch = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == config.model_type)
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

        def plain(name: str) -> tuple[np.ndarray, Any]:
            return _plain(_turned(self.other(name, reader.tensor(name)), name.rpartition(".")[0], config))

        def packed(name: str) -> tuple[np.ndarray, Any]:
            return self._packed(name, reader.layer(name), config)

        def array_of(name: str) -> np.ndarray:
            return packed(name)[0]

        for name in reader.names:
            base, _, ending = name.rpartition(".")
            yield Outline.of(f"{_named(names, base)}.{ending}", partial(plain, name))
        if rotary_kind(config.to_dict()) == "llama3":
            yield Outline.of("rope_freqs.weight", lambda: (_llama3_factors(config), None))
        for name, scheme in layers.items():
            (out, width), called = reader.shapes[name], f"{_named(names, name)}.weight"
            kind = type_of(scheme, width, self.options.types)
            if not kind:
                yield Outline.of(called, partial(packed, name))
                continue
            found = gguf.GGMLQuantizationType[kind]
            weights, size = gguf.GGML_QUANT_SIZES[found]
            shape = (out, width // weights * size)
            yield Outline(called, shape, np.dtype(np.uint8), found, partial(array_of, name))

    def other(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """See `Exporter`: vectors in float32, as llama.cpp wants them."""
        return tensor.float() if tensor.ndim == 1 else tensor

    def values(self, folder: Path, reader: rqat.Reader) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Exporter`: read by the package gguf, which has a decoder of its own."""
        import gguf
        import torch

        config = reader.config
        arch = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == config.model_type)
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / f"{self.options.name}.gguf").tensors}
        for name in reader.layers:
            tensor = found[f"{_named(names, name)}.weight"]
            values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            yield name, _turned(values, name, config, back=True)

    def _packed(self, name: str, weight: rqat.QuantizedWeight, config: Any) -> tuple[np.ndarray, Any]:
        """A layer's array and its type; 16 bits where no type holds it."""
        import gguf
        import torch

        assert weight.scheme is not None
        kind = type_of(weight.scheme, weight.codes.shape[1], self.options.types)
        if kind:
            try:
                array = torch.from_numpy((k_blocks if kind in K_TYPES else blocks)(weight, kind))
                return _turned(array, name, config).numpy(), gguf.GGMLQuantizationType[kind]
            except ValueError as error:
                raise rqat.ModelError(f"gguf: {name}: {error}.", hint="Export it in another format.") from error
        values = rqat.grid_of(weight.scheme).decode_layer(weight)
        half = torch.float16 if float(values.abs().max()) < torch.finfo(torch.float16).max else torch.bfloat16
        return _plain(_turned(values.to(half), name, config))


def _add_facts(writer: gguf.GGUFWriter, config: Any, layers: Mapping[str, rqat.Scheme], types: str) -> None:
    """Everything of config.json that llama.cpp computes with."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kinds = [type_of(scheme, 1 << 20, types) for scheme in layers.values()]
    writer.add_file_type(FILE_TYPES[max(dict.fromkeys(kinds), key=kinds.count)])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_string("general.quantized_by", f"rqat {rqat.__version__}")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _named(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name)
    if found is None:
        raise rqat.ModelError(f"gguf has no name for {name}.", hint="Export as bf16 or in another format.")
    return str(found)


def _plain(tensor: torch.Tensor) -> tuple[np.ndarray, Any]:
    """A tensor as it is, with its type."""
    import gguf
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
    return tensor.contiguous().numpy(), None


def _turned(tensor: torch.Tensor, name: str, config: Any, *, back: bool = False) -> torch.Tensor:
    """Rows of queries and keys in llama.cpp's order, where it turns neighbouring pairs (the architecture llama).

    Hugging Face has the first halves of all pairs of a head before the second halves.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.rpartition(".")[2])
    if heads is None or config.model_type != "llama":
        return tensor
    halves = (heads, -1, 2) if back else (heads, 2, len(tensor) // heads // 2)
    shape = tensor.shape
    return tensor.reshape(*halves, *shape[1:]).transpose(1, 2).reshape(shape).contiguous()


def _llama3_factors(config: Any) -> np.ndarray:
    """By what each frequency is divided: Llama 3's stretching of long waves, as llama.cpp takes it, float32."""
    given = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    short, long = given["high_freq_factor"], given["low_freq_factor"]
    factors = []
    for index in range(0, head, 2):
        wave = 2 * math.pi * given["rope_theta"] ** (index / head)
        turns = given["original_max_position_embeddings"] / wave
        share = min(1.0, max(0.0, (turns - long) / (short - long)))
        factors.append(1 / ((1 - share) / given["factor"] + share))
    return np.array(factors, dtype=np.float32)
