"""Tiny weights, inputs, models and problems, always the same, on which suites try a part out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..contracts import Block, LinearStats, QuantizedWeight, Quantizer, Row
from ..grids import grid_of
from ..scheme import Scheme

if TYPE_CHECKING:
    import torch
    import transformers

OUT, IN = 48, 128


def tiny_model(seed: int = 0) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A random two-block Qwen3 of width 64 in float32, and a tokenizer with one token per character."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    characters = ["\u010a", "\u0120", *map(chr, range(33, 127))]  # of bytes: line end, space, what is printed
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval(), tokenizer


def addition() -> Iterator[Row]:
    """Endless little problems with answers."""
    for number in itertools.count():
        one, two = number % 7, number % 11
        yield {"prompt": f"{one}+{two}=", "completion": f"{one + two}", "answer": f"{one + two}"}


def _random(*shape: int, seed: int) -> torch.Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_weight(out: int = OUT) -> torch.Tensor:
    return _random(out, IN, seed=0)


def random_inputs() -> torch.Tensor:
    """`(T, I)`, features of unequal size and correlated, as those of a real layer are."""
    return (_random(512, IN, seed=1) @ _random(IN, IN, seed=2) / IN**0.5) * _random(IN, seed=3).exp()


def stats_of(quantizer: Quantizer, inputs: torch.Tensor | None = None) -> LinearStats:
    """Exactly the statistics the quantizer asks for, of `inputs (T, I)`."""
    inputs = random_inputs() if inputs is None else inputs
    stats = LinearStats(tokens=len(inputs))
    if "hessian" in quantizer.needs:
        stats.hessian = inputs.T @ inputs / len(inputs)
    if "absmean" in quantizer.needs:
        stats.absmean = inputs.abs().mean(0)
    if "mean" in quantizer.needs:
        stats.mean = inputs.mean(0)
    if "absmax" in quantizer.needs:
        stats.absmax = inputs.abs().amax(0)
    if "cross" in quantizer.needs:  # of a model before quantization whose inputs are a little larger
        stats.cross = inputs.T @ (0.01 * inputs) / len(inputs)
    return stats


def block_stats(
    model: torch.nn.Module, block: Block, tokens: torch.Tensor, quantizer: Quantizer
) -> dict[str, LinearStats]:
    """Statistics of every layer of a block; layers with one input share one object."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        block.linear(shared.names[0]).register_forward_pre_hook(
            lambda _, given, name=shared.names[0]: seen.update({name: given[0].detach().flatten(0, -2)})
        )
        for shared in block.inputs
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    shared_stats = {shared: stats_of(quantizer, seen[shared.names[0]]) for shared in block.inputs}
    return {name: shared_stats[shared] for shared in block.inputs for name in shared.names}


def rounded(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    """A weight rounded to the nearest values of its grid; the span of every group holds all of it where uniform."""
    from rqat_kernels.grid import fit_minmax

    grid = grid_of(scheme)
    if not grid.uniform:
        return grid.quantize_layer(weight, *grid.fit_layer(weight))
    fitted = fit_minmax(weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric)
    return grid.quantize_layer(weight, *fitted)


def rounded_layers(model: transformers.PreTrainedModel, spelling: str = "w2g32") -> dict[str, QuantizedWeight]:
    """Every layer of a tiny model, rounded to 2 bits."""
    from ..model.families import layout_of

    scheme, names = Scheme.parse(spelling), layout_of(model.config).layer_names(2)
    weights = {name: model.get_parameter(f"{name}.weight").detach() for name in names}
    return {name: rounded(weight, scheme) for name, weight in weights.items()}


def save_rounded(folder: Path, scheme: Scheme, *, embedding: bool = False) -> None:
    """Writes `tiny_model`, with every layer rounded, as a step of a run into an existing folder.

    Args:
        embedding: round that as well; the head is tied to it.
    """
    from ..model.checkpoint import save_checkpoint
    from ..model.families import layout_of

    model, tokenizer = tiny_model()
    layers, layout = {}, layout_of(model.config)
    for name in ([layout.embeddings] if embedding else []) + layout.layer_names(2):
        weight = model.get_parameter(f"{name}.weight").data
        layers[name] = rounded(weight, scheme)
        weight.copy_(decoded(layers[name]))
    save_checkpoint(folder, model, tokenizer, layers)


def decoded(layer: QuantizedWeight) -> torch.Tensor:
    """`w_hat (O, I)`, float32."""
    assert layer.scheme is not None
    return grid_of(layer.scheme).decode_layer(layer)
