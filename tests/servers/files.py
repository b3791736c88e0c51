"""Small models of every family, rounded to a scheme and exported in a format: what servers are given."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rqat import QuantizedWeight, Scheme
from rqat.grids import grid_of
from rqat.job import Silence
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.model.experts import separate_experts
from rqat.registry import Registry
from rqat.stages.export.run import export_checkpoint

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
FAMILIES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "olmo2": (transformers.Olmo2Config, transformers.Olmo2ForCausalLM),
    "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
TEXTS = ("Hello", "the cat sat", "one two three, and", "x = 1;\n  y =", "Is 7 more than 3?")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, as GPT-2 cuts texts up; `<pad>` is 0, `<eos>` 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġ", "a"), ("i", "n"), ("l", "l"), ("o", "n")]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    vocabulary |= {"".join(pair): len(vocabulary) + index for index, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def small_model(family: str = "qwen3", *, tied: bool = True, **settings: object) -> transformers.PreTrainedModel:
    """A random model in float32, wide enough for every server's kernels; its logits are of the size of real ones."""
    config_class, model_class = FAMILIES[family]
    config = config_class(**SIZES | {"tie_word_embeddings": tied, "initializer_range": 0.08} | settings)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            parameter.copy_(parameter.bfloat16())
    torch.set_rng_state(state)
    separate_experts(model)
    return model


def save_rounded(
    folder: Path, scheme: str, family: str = "qwen3", *, ends: str = "", tied: bool = True, skip: str = "no layer",
    **settings: object,
) -> Path:  # fmt: skip
    """A finished step: `small_model` with its linear layers, and with `ends` its ends, rounded to the nearest."""
    model = small_model(family, tied=tied, **settings)
    layers: dict[str, QuantizedWeight] = {}
    for name, module in model.named_modules():
        embedding = isinstance(module, torch.nn.Embedding)
        end = embedding or name == "lm_head"
        if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) or (end and not ends):
            continue
        if (name == "lm_head" and tied) or name.endswith(skip):
            continue
        grid = grid_of(Scheme.parse(ends if end else scheme))
        layers[name] = grid.quantize_layer(module.weight.data, *grid.fit_layer(module.weight.data))
        module.weight.data.copy_(grid.decode_layer(layers[name]))
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, model, byte_tokenizer(), layers)
    return folder


def export(start: Path, folder: Path, format_name: str, **options: object) -> dict[str, object]:
    """Exports a step; what the export stage tells."""
    registry = Registry.discover()
    card = registry.card("exporter", format_name)
    exporter = registry.make(card, registry.options(card, options))
    return export_checkpoint(start, folder, exporter, card, base="a/small", device="cpu", progress=Silence())


def prompts() -> list[list[int]]:
    """Token ids of `TEXTS`."""
    return [byte_tokenizer()(text)["input_ids"] for text in TEXTS]


def last_logits(start: Path) -> torch.Tensor:
    """Logits `(TEXTS, V)` after each prompt, float32, of a step's own model."""
    return logits_of(load_checkpoint(start).model)


def logits_of(model: transformers.PreTrainedModel) -> torch.Tensor:
    """Logits `(TEXTS, V)` after each prompt, float32."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in prompts()])
