"""Every family of the table on a tiny random model: what its layout says is so, and the engine computes it.

A new family needs one line of `CONFIGS`: the names of its classes in transformers, and settings that show what is
peculiar to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import rqat_compressed_tensors
from rqat import ModelError, Options, QuantizedWeight
from rqat.generation.engine import Engine
from rqat.keys import ModelKeys
from rqat.model.blocks import describe_blocks
from rqat.model.blockwise import largest_difference
from rqat.model.checkpoint import decoded, save_checkpoint
from rqat.model.config import check_quantizable, read_config
from rqat.model.experts import separate_experts
from rqat.model.families import FAMILIES, LLAMA, layout_of
from rqat.model.hf_folder import write_config
from rqat.model.reader import CheckpointReader
from rqat.scheme import Scheme, Schemes
from rqat.testing.tiny import rounded
from rqat_awq.folding import Fold
from tests.servers.files import export
from tests.tiny import tiny_tokenizer

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_text": ("Gemma3", {"head_dim": 24, "sliding_window": 7, "sliding_window_pattern": 2}),
    "olmo2": ("Olmo2", {"attention_bias": True}),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "llama": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 24, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "seed_oss": ("SeedOss", {"head_dim": 24, "attention_out_bias": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
}

FOLDS = {"gemma3_text": 4, "olmo2": 4, "phi3": 4, "qwen3_moe": 10}
"""Places of two blocks that a scale folds into, where they are not 8: not into norms that are behind or add one, nor
into a part of a layer that is several."""

OTHERS = [name for name, family in FAMILIES.items() if family.layout is not LLAMA and not family.layout.expert]
"""Dense families whose modules are not those of most."""

every_family = pytest.mark.parametrize("family", FAMILIES)


def random_model(family: str, *, tied: bool = False) -> transformers.PreTrainedModel:
    """Two blocks of width 64 with grouped queries, whose norms and biases are not those they start with."""
    name, more = CONFIGS[family]
    config = getattr(transformers, f"{name}TextConfig" if family.endswith("_text") else f"{name}Config")(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=None,
        eos_token_id=1, **more,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    separate_experts(model)
    return model.eval().requires_grad_(False)


def test_every_family_is_tried_here() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@every_family
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_has_what_its_layout_names(family: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(family, tied=tied)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = read_config(ModelKeys(path=str(tmp_path)))
    check_quantizable(config)
    linears = {name: (m.out_features, m.in_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    del linears[config.layout.head]
    assert config.linears == linears


@every_family
def test_blocks_have_every_linear_layer_once(family: str) -> None:
    model = random_model(family)
    blocks = describe_blocks(model, Schemes.parse("w4g32"))
    found = [f"{block.name}.{name}" for block in blocks for name in block.names()]
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted([*found, layout_of(model.config).head]) == sorted(linears)


@every_family
def test_a_scale_folded_where_the_layout_says_changes_nothing(family: str) -> None:
    model = random_model(family)
    tokens = torch.arange(40).view(2, 20)
    before = model(tokens).logits
    generator = torch.Generator().manual_seed(1)
    folds = 0
    for block in describe_blocks(model, Schemes.parse("w4g32")):
        for shared in block.inputs:
            fold = Fold.find(block, shared)
            if fold is None:
                continue
            scale = torch.rand(block.linear(shared.names[0]).in_features, generator=generator) + 0.5
            fold.apply(fold.share(scale))
            folds += 1
    assert folds == FOLDS.get(family, 8)
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-3, atol=1e-4)


@every_family
@torch.no_grad()
def test_the_engine_writes_what_transformers_writes_or_says_why_not(family: str) -> None:
    model = random_model(family)
    if FAMILIES[family].undecodable:
        with pytest.raises(ModelError, match=FAMILIES[family].undecodable):
            Engine(model, rows=2)
        return
    prompts = [[5, 9, 30, 2, 77, 41, 8, 12, 60, 3], [17, 4, 90]]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(10):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        expected.append(tokens[len(prompt) :])
    written = Engine(model, rows=2).write(prompts, 10, ends=frozenset())
    assert [list(completion.tokens) for completion in written] == expected
    assert len(set(expected[0])) > 2


@pytest.mark.parametrize("family", OTHERS)
def test_an_exported_model_of_another_layout_is_read_back_by_transformers(family: str, tmp_path: Path) -> None:
    """Whole, and block by block, as large models are compared."""
    model, layers = random_model(family, tied=True), dict[str, QuantizedWeight]()
    for name in layout_of(family).layer_names(2):
        weight = model.get_parameter(f"{name}.weight").data
        layers[name] = rounded(weight, Scheme.parse("w4g32"))
        weight.copy_(decoded(layers[name], torch.float32))
    start, out = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    save_checkpoint(start, model, tiny_tokenizer(), layers)
    export(start, out, "compressed-tensors")
    exporter = rqat_compressed_tensors.CompressedTensors(Options())
    difference, largest = largest_difference(out, exporter, CheckpointReader(start), "cpu", [0, 1])
    assert difference <= 1e-6 * largest


def test_older_readers_find_the_rotary_embeddings_of_gemma_and_phi(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "rope_parameters": rope}))
    out = tmp_path / "out"
    out.mkdir()
    write_config(tmp_path, out, None)
    found = json.loads((out / "config.json").read_text())
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    factors = {"short_factor": [1.0], "long_factor": [2.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "factor": 4.0, **factors}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi3", "rope_parameters": rope}))
    write_config(tmp_path, out, None)
    found = json.loads((out / "config.json").read_text())
    assert found["rope_scaling"] == {"type": "longrope", **factors}, "transformers 4 takes no other keys"
    assert (found["partial_rotary_factor"], found["rope_theta"]) == (0.75, 1e4)


def test_a_head_is_tied_where_a_family_says_so_and_config_json_does_not(tmp_path: Path) -> None:
    for family, tied in (("gemma3_text", True), ("phi3", False)):
        folder = tmp_path / family
        random_model(family, tied=tied).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        raw = json.loads((folder / "config.json").read_text())
        raw.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(raw))
        config = read_config(ModelKeys(path=str(folder)))
        check_quantizable(config)
        assert config.tied == tied


def test_a_family_that_is_not_known_is_named_with_those_that_are(tmp_path: Path) -> None:
    model = transformers.GemmaForCausalLM(
        transformers.GemmaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="architecture 'gemma'") as raised:
        check_quantizable(read_config(ModelKeys(path=str(tmp_path))))
    assert "gemma3_text, llama, mistral, olmo2, phi3, qwen2, qwen3" in str(raised.value.hint)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="architecture 'gemma3'") as raised:
        check_quantizable(read_config(ModelKeys(path=str(tmp_path))))
    assert "gemma3_text: save that alone" in str(raised.value.hint)
    with pytest.raises(ModelError, match="family is gemma, not one of llama, mistral, phi3, qwen2, qwen3, seed_oss"):
        Engine(model)
