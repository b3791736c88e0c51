"""Compares an exported folder with the checkpoint it was written from in the memory of one decoder block.

Both are taken apart into models of one block with a vocabulary of a few tokens, which transformers loads as it would
load the whole folder. The hidden states that the checkpoint's block gives go into the next one of both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import Exporter
from ..errors import NumericsError
from ..storage import read_json, write_json
from .checkpoint import decoded
from .devices import default_dtype
from .families import Layout, layout_of
from .hf_folder import ShardWriter
from .reader import CheckpointReader
from .stored import StoredTensors

VOCABULARY = 8
"""Tokens of a model of one block; its embeddings are never used."""

BATCH, TOKENS = 2, 24
"""Shape of the input, random tokens."""


def largest_difference(folder: Path, exporter: Exporter, reader: CheckpointReader, device: str) -> tuple[float, float]:
    """The largest difference of hidden states after any block, and the largest hidden state after that block.

    Raises:
        NumericsError: a tensor that is not quantized was changed.
        RqatError, or whatever transformers raises: the folder cannot be loaded.
    """
    stored = StoredTensors(folder)
    for name in reader.names:
        if not stored.read(name).equal(reader.tensor(name)):
            raise NumericsError(
                f"'{folder}' is not the model that was exported: {name} was changed.", hint="Do not serve it."
            )
    config = read_json(folder / "config.json")
    layout = layout_of(config["model_type"])
    embeddings = reader.tensor(f"{layout.embeddings}.weight")
    tokens = torch.randint(0, len(embeddings), (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    hidden = embeddings[tokens].to(device, default_dtype(device))
    worst, largest = 0.0, 1.0
    for block in range(config["num_hidden_layers"]):
        inside, first = f"{layout.block(block)}.", f"{layout.block(0)}."
        layers = {name.replace(inside, first, 1): s for name, s in reader.layers.items() if name.startswith(inside)}
        skipped = [name.replace(inside, first, 1) for name in reader.skipped if name.startswith(inside)]
        packed = exporter.config(layers, [*skipped, layout.head]) if layers else None
        tensors = ((name, stored.read(name)) for name in stored.names)
        found = _run(_of_one_block(config, block, packed), layout, tensors, block, hidden)
        plain = _weights_of(exporter, reader, inside)
        hidden = _run(_of_one_block(config, block, None), layout, plain, block, hidden)
        difference, scale = float((found - hidden).abs().max()), float(hidden.abs().max())
        if not difference / scale <= worst / largest:  # "not", so that NaN counts as the worst
            worst, largest = difference, scale
    return worst, largest


def _weights_of(exporter: Exporter, reader: CheckpointReader, inside: str) -> Iterable[tuple[str, Tensor]]:
    """What a block of the checkpoint computes with, rounded as the exporter rounds it."""
    dtype = getattr(torch, exporter.loader_dtype or "float32")
    yield from ((name, reader.tensor(name)) for name in reader.names)
    for name in reader.layers:
        if name.startswith(inside):
            layer = reader.layer(name)
            yield f"{name}.weight", decoded(layer, dtype).float()


def _of_one_block(config: dict[str, Any], block: int, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """A configuration of the same model with nothing but one block."""
    small = {key: value for key, value in config.items() if key != "quantization_config"}
    small |= {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    small |= dict.fromkeys([key for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in small])
    if small.get("layer_types"):
        small["layer_types"] = [config["layer_types"][block]]
    return small | ({"quantization_config": quantization} if quantization else {})


def _run(
    config: dict[str, Any], layout: Layout, tensors: Iterable[tuple[str, Tensor]], block: int, hidden: Tensor
) -> Tensor:
    """Hidden states behind a block: of the model with `config`, and of `tensors` those that belong to it."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="rqat-block-") as name:
        folder = Path(name)
        shards = ShardWriter(folder)
        for key, tensor in tensors:
            if key.startswith(f"{layout.block(block)}."):
                shards.add(key.replace(layout.block(block), layout.block(0), 1), tensor)
            elif key == f"{layout.embeddings}.weight":
                shards.add(key, tensor[:VOCABULARY])
            elif not key.startswith((f"{layout.blocks}.", f"{layout.head}.")):
                shards.add(key, tensor)
        shards.close()
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=hidden.dtype, local_files_only=True
        )
    outputs: list[Tensor] = []
    model.get_submodule(layout.block(0)).register_forward_hook(
        lambda module, given, output: outputs.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model.to(hidden.device).eval()(inputs_embeds=hidden)
    return outputs[0]
