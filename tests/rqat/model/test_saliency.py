"""What a token counts in a Hessian: the squared gradient of a drawn token's likelihood on what the layers put out."""

from __future__ import annotations

import pytest
import torch

from rqat import Scheme
from rqat.model.activations import Activations, TokenBatch
from rqat.model.blocks import describe_blocks, quantize_model
from rqat.scheme import Schemes
from rqat_gptq import Options
from rqat_gptq.solver import Gptq
from tests.tiny import tiny_model

SCHEME = Scheme.parse("w2g32")
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def batches() -> list[TokenBatch]:
    ids = torch.randint(5, 60, (5, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, 9:] = False
    return [TokenBatch(ids[:3]), TokenBatch(ids[3:], mask)]


def found(monkeypatch: pytest.MonkeyPatch, at_once: int = 2048) -> dict[str, list[torch.Tensor]]:
    monkeypatch.setattr("rqat.model.saliency.BACKWARD_TOKENS", {"cpu": at_once})
    model = tiny_model(0)
    blocks = describe_blocks(model, Schemes.parse(SCHEME))
    walk = Activations(
        model, [(block.name, block.module) for block in blocks], batches(), needs=frozenset({"hessian", "saliency"})
    )
    walk.weigh(model, blocks)
    return walk._saliency


def test_it_is_the_squared_gradient_of_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []
    plain = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *given, **named: drawn.append(plain(*given, **named)) or drawn[-1])
    weights = found(monkeypatch)
    assert len(drawn) == 5
    model, rows = tiny_model(0), iter(drawn)
    outputs: list[torch.Tensor] = []
    for name in LAYERS:
        layer = model.get_submodule(f"model.layers.1.{name}")
        layer.register_forward_hook(lambda module, given, out: outputs.append(out) or out.retain_grad())
    expected = []
    for batch in batches():
        for row, ids in enumerate(batch.input_ids):
            outputs.clear()
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            likelihood = log_p.gather(1, next(rows))[:, 0]
            real = torch.ones(16, dtype=torch.bool) if batch.attention_mask is None else batch.attention_mask[row]
            likelihood[real].sum().backward()
            expected.append(sum(out.grad[0].square().sum(-1) for out in outputs))
    expected = torch.cat(expected)
    got = torch.cat(weights["model.layers.1.self_attn.q_proj"])
    padding = torch.cat([torch.zeros(3 * 16, dtype=torch.bool), ~batches()[1].attention_mask.flatten()])
    assert (got[padding] == 0).all()
    torch.testing.assert_close(got, expected / expected[~padding].mean(), rtol=1e-4, atol=1e-6)
    assert got[~padding].mean() == pytest.approx(1)


def test_how_many_sequences_are_done_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, one = found(monkeypatch), found(monkeypatch, at_once=1)
    for name, weights in whole.items():
        for ours, theirs in zip(weights, one[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_hessians_are_weighted_by_it_and_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Watched(Gptq):
        def quantize_block(self, block, stats):
            seen.update({block.full_name(name): stats[name].hessian.clone() for name in block.names()})
            return super().quantize_block(block, stats)

    model = tiny_model(0)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    inputs: list[torch.Tensor] = []
    hook = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda module, given: inputs.append(given[0])
    )
    with torch.no_grad():
        for batch in batches():
            model(input_ids=batch.input_ids)
    hook.remove()
    quantize_model(model, batches(), Watched(Options(token_weights="saliency")), SCHEME)
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    name = "model.layers.0.self_attn.q_proj"
    weight = torch.cat(found(monkeypatch)[name])
    x = torch.cat([one.flatten(0, 1) for one in inputs])
    tokens = 3 * 16 + int(batches()[1].attention_mask.sum())
    torch.testing.assert_close(seen[name], (x * weight[:, None]).T @ x / tokens, rtol=1e-3, atol=1e-5)
