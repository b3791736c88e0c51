"""Exporter `acme-gguf`: one GGUF file with quantized layers as Q4_0, without loss.

Q4_0 stores blocks of 32 weights as `(nibble - 8) * scale` with a float16 scale. The host's weights are
`(code - zero) * scale`: with 2 and 3 bits the difference lies between -7 and 7, and scales are exact in float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import rqat

if TYPE_CHECKING:
    import numpy

BLOCK = 32
"""Weights that share a scale in Q4_0."""

FAMILIES = ("qwen2", "qwen3")
"""Families whose weights GGUF stores in the order of Hugging Face, under `model_type`."""


class Options(rqat.Options):
    """Options of `acme-gguf`.

    Attributes:
        name: of the file, without its ending.
    """

    name: str = "model"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """Q4_0 holds 2 and 3 bits, and groups that whole blocks of 32 fill."""
        if context.model and context.model.model_type not in FAMILIES:
            yield rqat.Problem(f"'{context.model.model_type}' is not written as GGUF.", hint=f"Known: {FAMILIES}.")
        for scheme in dict.fromkeys(context.schemes.values()):
            widths = {context.model.linears[name][1] for name in context.schemes} if context.model else set()
            if scheme.bits > 3 or any(scheme.group_size(width) % BLOCK for width in widths):
                yield rqat.Problem(f"Q4_0 does not hold {scheme}.", hint="Use 2 or 3 bits and groups of 32 or more.")


class Gguf(rqat.Exporter):
    """Writes `<name>.gguf`."""

    serving = "```shell\nllama-server -m THIS_FOLDER/model.gguf\n```\n"

    def write(self, folder: Path, reader: rqat.Reader, layers: Mapping[str, rqat.Scheme]) -> None:
        """See `Exporter`; tensors wait in a temporary file, so that one is in memory at a time."""
        import gguf

        config = reader.config
        arch = {text: key for key, text in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        writer = gguf.GGUFWriter(folder / f"{self.options.name}.gguf", config.model_type, use_temp_file=True)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_token_list(reader.tokenizer.convert_ids_to_tokens(list(range(len(reader.tokenizer)))))
        for name in reader.names:
            base, _, ending = name.rpartition(".")
            writer.add_tensor(f"{names.get_name(base)}.{ending}", reader.tensor(name).float().numpy())
        for name in layers:
            blocks = _q4_0(name, reader.layer(name))
            writer.add_tensor(f"{names.get_name(name)}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _q4_0(name: str, weight: rqat.QuantizedWeight) -> numpy.ndarray:
    """Bytes `(O, I / 32 * 18)`: per block a float16 scale, then 16 bytes with weights `i` and `i + 16` in each."""
    import numpy as np

    out, width = weight.codes.shape
    group = width // weight.scale.shape[1]
    value = weight.codes.int() - weight.zero.int().repeat_interleave(group, 1) + 8
    if group % BLOCK or int(value.min()) < 0 or int(value.max()) > 15:
        raise rqat.ModelError(f"{name} does not fit Q4_0.", hint="Use 2 or 3 bits and groups of 32 or more.")
    nibbles = value.numpy().astype(np.uint8).reshape(out, -1, BLOCK)
    packed = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    scale = weight.scale.repeat_interleave(group // BLOCK, 1).numpy().astype(np.float16)
    return np.concatenate([scale[..., None].view(np.uint8), packed], -1).reshape(out, -1)


@rqat.hookimpl
def register_exporters(register: rqat.RegisterExporter) -> None:
    """See `rqat.hookspecs`."""
    register("acme-gguf", options=Options, load=":Gguf", summary="one GGUF file, Q4_0")
