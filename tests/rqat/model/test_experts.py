"""Mixtures of experts: put apart they compute the same, and an expert is quantized by what was sent to it."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import transformers

import rqat
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.activations import TokenBatch
from rqat.model.blocks import UNSEEN, quantize_model
from rqat.model.checkpoint import load_checkpoint
from rqat.model.config import check_quantizable, read_config
from rqat.model.experts import Experts, routed, separate_experts
from rqat.model.extras import unasked
from rqat.model.load import load_model
from rqat.model.native import load_quantized
from rqat.pipeline import run_pipeline
from rqat.plan import build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.scheme import Scheme
from rqat.stages.quantize.run import told_notes
from tests.servers.files import export, save_rounded
from tests.tiny import tiny_tokenizer


def mixture(experts: int = 4, chosen: int = 2, **more: object) -> transformers.PreTrainedModel:
    """Two blocks of width 32 as transformers has them: the weights of all experts in two tensors."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=experts, num_experts_per_tok=chosen, moe_intermediate_size=32,
        max_position_embeddings=128, pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.2, **more,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen3MoeForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    return model


def saved(folder: Path, **more: object) -> Path:
    mixture(**more).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


IDS = torch.arange(3, 43).view(2, 20)


def test_experts_that_are_put_apart_compute_the_same() -> None:
    model = mixture(norm_topk_prob=True)
    expected = model(IDS).logits
    separate_experts(model)
    assert isinstance(model.model.layers[1].mlp.experts, Experts)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_expert_that_was_chosen() -> None:
    model = mixture()
    separate_experts(model)
    model.requires_grad_(True)
    model(IDS).logits.square().mean().backward()
    experts = model.model.layers[0].mlp.experts
    chosen = model.model.layers[0].mlp.gate(model.model.layers[0].post_attention_layernorm(_before(model)))[2]
    assert {number for number, one in enumerate(experts) if one.up_proj.weight.grad.any()} == {
        *chosen.flatten().tolist()
    }


def _before(model: transformers.PreTrainedModel) -> torch.Tensor:
    """Hidden states in front of the first block's MLP."""
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].post_attention_layernorm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    model(IDS)
    handle.remove()
    return seen[0]


class Watcher(rqat.Quantizer):
    """Rounds, and keeps the statistics."""

    needs: ClassVar[frozenset[rqat.Statistic]] = frozenset({"hessian", "cross"})

    def quantize_block(self, block, stats):
        self.seen = getattr(self, "seen", {}) | {block.full_name(name): copy.deepcopy(stats[name]) for name in stats}
        return super().quantize_block(block, stats)

    def quantize_linear(self, weight, stats, scheme):
        grid = rqat.grid_of(scheme)
        return grid.quantize_layer(weight, *grid.fit_layer(weight))


def test_an_expert_is_calibrated_on_the_tokens_sent_to_it_without_padding() -> None:
    model = mixture()
    separate_experts(model)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 12:] = False
    watcher, inputs = Watcher(rqat.Options()), dict[int, tuple[torch.Tensor, torch.Tensor | None]]()
    experts = model.model.layers[0].mlp.experts

    def keep(number: int):
        def hook(module, given):
            inputs[number] = given[0].clone(), routed(given[0])

        return hook

    hooks = [one.up_proj.register_forward_pre_hook(keep(number)) for number, one in enumerate(experts)]
    model(IDS)  # of the first block: the one whose attention is still the original's
    for hook in hooks:
        hook.remove()
    before = dict(inputs)
    quantize_model(model, [TokenBatch(IDS, mask)], watcher, Scheme.parse("w8g32"))
    for number, (x, tokens) in before.items():
        rows = x[mask.flatten()[tokens]]
        stats = watcher.seen[f"model.layers.0.mlp.experts.{number}.up_proj"]
        assert stats.tokens == len(rows)
        torch.testing.assert_close(stats.hessian, rows.T @ rows / len(rows), rtol=0.05, atol=0.01)  # behind attention
        assert stats.cross.isfinite().all()
    assert sum(len(tokens) for _, tokens in before.values()) == 2 * 40


@pytest.mark.parametrize("method", ["gptq", "awq", "block-ap"])
def test_experts_that_saw_no_token_are_rounded_and_named(method: str) -> None:
    model, registry = mixture(experts=16, chosen=1), Registry.current()
    separate_experts(model)
    seen = set[int]()

    def look(number: int):
        def hook(module, given):
            if len(given[0]):
                seen.add(number)

        return hook

    experts = model.model.layers[0].mlp.experts
    hooks = [one.up_proj.register_forward_pre_hook(look(number)) for number, one in enumerate(experts)]
    quantizer = registry.make(card := registry.card("quantizer", method), registry.options(card, {}))
    _, reports = quantize_model(model, [TokenBatch(IDS[:1, :6])], quantizer, Scheme.parse("w4g32"))
    for hook in hooks:
        hook.remove()
    noted = {report.name for report in reports if report.note == UNSEEN}
    numbers = {int(name.split(".")[5]) for name in noted if name.startswith("model.layers.0.")}
    assert len(numbers) >= 10
    assert numbers | seen == {*range(16)}
    lines = [*told_notes(dict.fromkeys(sorted(noted), UNSEEN))]
    assert len(lines) == 2, "one for each block"
    assert lines[0].startswith("model.layers.0.mlp.experts ")
    assert all(report.error is not None and report.error < 0.05 for report in reports if report.name in noted)


def test_a_mixture_goes_the_whole_way(tmp_path: Path) -> None:
    """Read, quantized, exported with packed experts, and read again."""
    folder = saved(tmp_path / "model")
    keys = {"name": "r", "model": str(folder), "scheme": "w4g32", "quantize": "rtn", "export": "rqat"}
    registry = Registry.discover()
    plan = build_plan(built_recipe(keys, {}), registry)
    assert [str(found) for found in preflight(plan) if found.level == "error"] == []
    run_pipeline(Job(plan, tmp_path / "run", registry))
    found = load_quantized(tmp_path / "run" / "02-export" / "model")
    packed, _ = rqat.load_packed(tmp_path / "run" / "02-export" / "model", device="cpu")
    original, _ = load_model(ModelKeys(path=str(folder)))
    assert len(found.layers) == 2 * (4 + 4 * 3)
    logits = found.model(IDS).logits
    torch.testing.assert_close(packed(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert (original(IDS).logits - logits).norm() < 0.5 * logits.norm()


def test_formats_that_hold_no_experts_say_so_before_any_work(tmp_path: Path) -> None:
    keys = {"name": "r", "model": str(saved(tmp_path / "m")), "scheme": "w4g32", "quantize": "rtn"}
    plan = build_plan(built_recipe(keys, {}), Registry.discover())
    (line,) = [str(found) for found in preflight(plan) if found.level == "error"]
    assert "'compressed-tensors' with packed experts at w4g32 was seen to load in no server" in line
    assert "vLLM was seen to read them at w4g128-sym" in line


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
def test_what_chooses_experts_is_named_among_what_is_not_quantized(tmp_path: Path, form: str) -> None:
    """To vLLM it is a linear layer like others: it took it for a quantized one, and refused the file."""
    small = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "num_hidden_layers": 1}
    start = save_rounded(tmp_path / "start", "w4g128-sym", "qwen3_moe", **small)
    facts = export(start, tmp_path / "out", form)
    assert facts["left_as_they_were"] == ["lm_head", "model.layers.0.mlp.gate"]
    assert facts["reload"] == "not checked: transformers reads no packed experts"
    assert facts["decoded"] == "every layer equal, bit by bit"
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert re.search(r"mlp\\*\.gate", str(said.get("ignore") or said.get("dynamic")))
    found, _ = load_model(ModelKeys(path=str(tmp_path / "out")), quantizable=False)
    assert torch.equal(found(IDS).logits, load_checkpoint(start).model(IDS).logits), "decoded here"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve" in card
    assert "AutoModelForCausalLM" not in card, "it reads the experts otherwise"


def test_blocks_with_and_without_experts_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", mlp_only_layers=[0])
    config = read_config(ModelKeys(path=str(folder)))
    with pytest.raises(rqat.ModelError, match="blocks with experts and blocks without"):
        check_quantizable(config)
    assert not unasked(config)
    raw = json.loads((folder / "config.json").read_text()) | {"model_type": "mixtral"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(rqat.ModelError, match=r"mixture of experts \(.*: 4\) of the architecture 'mixtral'"):
        check_quantizable(read_config(ModelKeys(path=str(folder))))
