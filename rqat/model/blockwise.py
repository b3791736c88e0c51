"""Compares an exported folder with the checkpoint it was written from in the memory of one decoder block.

Both are taken apart into models of one block with a vocabulary of a few tokens, which transformers loads as it would
load the whole folder. The hidden states that the checkpoint's block gives go into the next one of both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import Exporter
from ..errors import NumericsError
from ..storage import read_json, write_json
from .checkpoint import decoded
from .devices import default_dtype, without_values
from .experts import separate_experts
from .families import Layout, layout_of
from .hf_folder import ShardWriter
from .memory import give_back
from .reader import CheckpointReader
from .stored import StoredTensors
from .tensor_file import Lying

VOCABULARY = 8
"""Tokens of a model of one block; its embeddings are never used."""

BATCH, TOKENS = 2, 24
"""Shape of the input, random tokens."""


def largest_difference(
    folder: Path, exporter: Exporter, reader: CheckpointReader, device: str, blocks: Sequence[int]
) -> tuple[float, float]:
    """The largest difference of hidden states after any block, and the largest hidden state after that block.

    Logits of a quantized head count as hidden states behind one more block.

    Args:
        blocks: those that are looked at.

    Raises:
        NumericsError: a tensor that is not quantized was changed.
        RqatError, or whatever transformers raises: the folder cannot be loaded.
    """
    stored = StoredTensors(folder)
    for name in reader.names:
        if not stored.holds(name, reader.lying(name)):
            raise NumericsError(
                f"'{folder}' is not the model that was exported: {name} was changed.", hint="Do not serve it."
            )
    hidden, few = _first_states(reader.lying(f"{layout_of(reader.config).embeddings}.weight"))
    hidden = hidden.to(device, default_dtype(device))
    worst, largest = 0.0, 1.0
    for found, expected in _pairs(folder, exporter, reader, few, hidden, blocks):
        difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
        if not difference / scale <= worst / largest:  # "not", so that NaN counts as the worst
            worst, largest = difference, scale
    return worst, largest


def _first_states(embeddings: Tensor | Lying) -> tuple[Tensor, Tensor]:
    """Hidden states in front of the first block, of random tokens, and the embeddings of a few."""
    count = embeddings.shape[0]
    tokens = torch.randint(0, count, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    few = torch.arange(min(VOCABULARY, count))
    if isinstance(embeddings, Tensor):
        return embeddings[tokens], embeddings[few]
    return embeddings.rows(tokens), embeddings.rows(few)


def telling(reader: CheckpointReader) -> list[int]:
    """Blocks that together hold everything that a format's reader could treat in a way of its own.

    That is the type of a block, the schemes of its layers, every zero point of each, and whether scales fit bfloat16.
    Where all layers of a file were decoded and found equal, these blocks tell whether it is read right.
    """
    config = reader.config
    count, layout = int(config.num_hidden_layers), layout_of(config)
    kinds = getattr(config, "layer_types", None) or [""] * count
    chosen, seen = list[int](), set[Any]()
    for block in range(count):
        inside = f"{layout.block(block)}."
        schemes = {name.removeprefix(inside): s for name, s in reader.layers.items() if name.startswith(inside)}
        found: set[Any] = {(kinds[block], *schemes.items())}
        for name, scheme in schemes.items():
            scale, zero = reader.grid_of(f"{inside}{name}")
            found |= {(scheme, value) for value in zero.unique().tolist()}
            found.add((scheme, torch.equal(scale.bfloat16().float(), scale)))
        if not found <= seen:
            chosen.append(block)
        seen |= found
    return chosen


def _pairs(
    folder: Path, exporter: Exporter, reader: CheckpointReader, few: Tensor, hidden: Tensor, blocks: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the folder's blocks, and its head where it is quantized, put out, and what they should.

    Args:
        few: the embeddings of some tokens.
        hidden: what the first block reads; every other one reads what the one before should put out.
        blocks: those that are looked at.
    """
    stored, config = StoredTensors(folder), read_json(folder / "config.json")
    layout, dtype = layout_of(config), hidden.dtype
    norm: Any = None
    for block in blocks:
        inside = f"{layout.block(block)}."
        layers, skipped = _renamed(reader.layers, layout, inside), [*_renamed(reader.skipped, layout, inside)]
        packed = exporter.config(layers, [*skipped, layout.head]) if layers else None
        theirs = ((name, stored.read(name)) for name in stored.names if _belongs(name, layout, inside))
        mine = _weights_of(exporter, reader, layout, inside)
        loaded = _loaded(_of_one_block(config, block, packed), _as_first(theirs, few, layout, inside), dtype)
        found = _behind(loaded, layout, hidden)
        del loaded
        filled = _filled(_of_one_block(config, block, None), _as_first(mine, few, layout, inside), dtype, reader)
        hidden, norm = _behind(filled, layout, hidden), filled.get_submodule(layout.norm)
        del filled
        give_back(hidden.device.type)  # models go in circles
        yield found, hidden
    if layout.head not in reader.layers:
        return
    inside = f"{layout.block(0)}."
    layers = _renamed(reader.layers, layout, inside) | {layout.head: reader.layers[layout.head]}
    small = _of_one_block(config, 0, exporter.config(layers, [*_renamed(reader.skipped, layout, inside)]))
    small |= {key: config[key] for key in ("vocab_size", "tie_word_embeddings")}
    ends = f"{layout.head}."
    theirs = (
        (name, stored.read(name)) for name in stored.names if name.startswith(ends) or _belongs(name, layout, inside)
    )
    unused = torch.zeros(config["vocab_size"], few.shape[1], dtype=few.dtype)
    loaded = _loaded(small, _as_first(theirs, unused, layout, inside), dtype)
    head = decoded(reader.layer(layout.head), getattr(torch, exporter.loader_dtype or "float32")).to(hidden)
    with torch.no_grad():
        _behind(loaded, layout, hidden)  # some loaders unpack weights in a model's first forward pass
        found = loaded.get_submodule(layout.head)(loaded.get_submodule(layout.norm)(hidden))
        yield found, torch.nn.functional.linear(norm(hidden), head)


def _renamed(layers: Any, layout: Layout, inside: str) -> dict[str, Any]:
    """The layers of a block, in order, under the names they have in a model of that block alone."""
    first = f"{layout.block(0)}."
    own = [name for name in layers if name.startswith(inside)]
    return {name.replace(inside, first, 1): layers[name] if isinstance(layers, Mapping) else None for name in own}


def _belongs(name: str, layout: Layout, inside: str) -> bool:
    """Whether a tensor is part of a model of one block, its embeddings aside."""
    ends = (f"{layout.blocks}.", f"{layout.head}.", f"{layout.embeddings}.")
    return name.startswith(inside) or not name.startswith(ends)


def _weights_of(
    exporter: Exporter, reader: CheckpointReader, layout: Layout, inside: str
) -> Iterator[tuple[str, Tensor]]:
    """What a block of the checkpoint computes with, rounded as the exporter rounds it."""
    dtype = getattr(torch, exporter.loader_dtype or "float32")
    yield from ((name, reader.tensor(name)) for name in reader.names if _belongs(name, layout, inside))
    for name in reader.layers:
        if name.startswith(inside):
            yield f"{name}.weight", decoded(reader.layer(name), dtype)


def _of_one_block(config: dict[str, Any], block: int, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """A configuration of the same model with nothing but one block."""
    small = {key: value for key, value in config.items() if key != "quantization_config"}
    small |= {"num_hidden_layers": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    small |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # a family's own may be past these few
    if small.get("layer_types"):
        small["layer_types"] = [config["layer_types"][block]]
    return small | ({"quantization_config": quantization} if quantization else {})


def _as_first(
    tensors: Iterable[tuple[str, Tensor]], embeddings: Tensor, layout: Layout, inside: str
) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names they have in a model of one block, and its embeddings."""
    yield f"{layout.embeddings}.weight", embeddings
    yield from ((name.replace(inside, f"{layout.block(0)}.", 1), tensor) for name, tensor in tensors)


def _loaded(config: dict[str, Any], tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Any:
    """A model as transformers loads it from a folder with `tensors`."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="rqat-block-") as name:
        folder = Path(name)
        shards = ShardWriter(folder)
        for key, tensor in tensors:
            shards.add(key, tensor)
        shards.close()
        write_json(folder / "config.json", json.loads(json.dumps(config)))
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def _filled(
    config: dict[str, Any], tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, reader: CheckpointReader
) -> Any:
    """A model that is given `tensors`, without a detour over files."""
    import transformers

    with without_values():
        made = type(reader.config).from_dict(config)
        model: Any = transformers.AutoModelForCausalLM.from_config(made, dtype=dtype)
        separate_experts(model)
    state = {name: tensor.to(dtype) for name, tensor in tensors}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model


def _behind(model: Any, layout: Layout, hidden: Tensor) -> Tensor:
    """Hidden states behind the only block of a model."""
    outputs: list[Tensor] = []
    model.get_submodule(layout.block(0)).register_forward_hook(
        lambda module, given, output: outputs.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model.to(hidden.device).eval()(inputs_embeds=hidden)
    return outputs[0]
