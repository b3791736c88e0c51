"""awq: folding leaves the block's function alone, statistics follow the fold, and the error is less than rounding's."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rqat import Block, LinearStats, NumericsError, QuantizedWeight, RqatError, Scheme, SharedInput, Streams
from rqat.testing import QuantizerSuite
from rqat_awq import Options
from rqat_awq.folding import Fold
from rqat_awq.solver import Awq
from rqat_kernels.grid import dequantize, fit_clip, fit_minmax, quantize
from tests.tiny import tiny_model

INPUTS = (
    SharedInput(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    SharedInput(("self_attn.o_proj",), "self_attn.v_proj"),
    SharedInput(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    SharedInput(("mlp.down_proj",), "mlp.up_proj"),
)


class Decoder:
    """The first block of a tiny Qwen3 (4 query heads, 2 value heads), and inputs some of whose features are large."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.model = tiny_model(0).to(dtype)
        module = self.model.model.layers[0]
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for norm in (module.input_layernorm, module.post_attention_layernorm):
                norm.weight.copy_(torch.randn(128, generator=generator).exp())
            module.mlp.up_proj.weight.mul_(torch.randn(256, 1, generator=generator).exp())
            module.self_attn.v_proj.weight.mul_(torch.randn(64, 1, generator=generator).exp())
        self.block = Block("model.layers.0", module, INPUTS, {})
        self.x = torch.randn(4, 64, 128, generator=generator).to(dtype)

    def at(self, scheme: Scheme) -> Block:
        """The block with this scheme for every layer."""
        return replace(self.block, schemes=dict.fromkeys(self.block.names(), scheme))

    @torch.no_grad()
    def run(self) -> Tensor:
        """What the block puts out."""
        position = torch.arange(64)[None]
        rope = self.model.model.rotary_emb(self.x, position)
        out = self.block.module(self.x, position_embeddings=rope, position_ids=position)
        return out[0] if isinstance(out, tuple) else out

    def streams(self) -> Streams:
        """The same inputs as calibration, all of them in one batch."""

        def run(number: int, hidden: Tensor) -> Tensor:
            self.x, kept = hidden, self.x
            out, self.x = self.run(), kept
            return out

        return Streams([self.x], [self.x], [self.run()], [None], run)

    def stats(self) -> dict[str, LinearStats]:
        """Statistics at every layer's input, as the block is now."""
        seen: dict[str, LinearStats] = {}

        def watch(name: str):
            def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                x = arguments[0].flatten(0, -2).float()
                seen[name] = LinearStats(len(x), x.T @ x / len(x), x.abs().mean(0))

            return hook

        hooks = [self.block.linear(name).register_forward_pre_hook(watch(name)) for name in self.block.names()]
        self.run()
        for hook in hooks:
            hook.remove()
        return seen


def rounded(weight: Tensor, scheme: Scheme, clip: str) -> QuantizedWeight:
    fit = fit_clip if clip == "mse" else fit_minmax
    scale, zero = fit(weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric)
    return QuantizedWeight(quantize(weight, scale, zero, scheme.max_code), scale, zero.to(torch.uint8))


def loss(result: QuantizedWeight, weight: Tensor, hessian: Tensor) -> float:
    """`tr((w_hat - w) H (w_hat - w)^T)`."""
    error = (dequantize(result.codes, result.scale, result.zero) - weight).double()
    return float(((error @ hessian.double()) * error).sum())


def test_folding_leaves_what_the_block_computes_as_it_is() -> None:
    decoder = Decoder()
    before, names = decoder.run(), {name: p.clone() for name, p in decoder.block.module.named_parameters()}
    for index, shared in enumerate(decoder.block.inputs):
        fold = Fold.find(decoder.block, shared)
        assert fold is not None
        features = decoder.block.linear(shared.names[0]).in_features
        scale = torch.randn(features, generator=torch.Generator().manual_seed(index)).exp()
        fold.apply(fold.share(scale))
        torch.testing.assert_close(decoder.run(), before, rtol=1e-5, atol=1e-5)
    moved = {n for n, p in decoder.block.module.named_parameters() if not torch.equal(p, names[n])}
    assert moved == {name for name in names if "q_norm" not in name and "k_norm" not in name}


def test_quantizing_a_block_leaves_the_same_function_and_rounds_what_is_left() -> None:
    decoder, scheme = Decoder(), Scheme.parse("w3g32")
    before = decoder.run()
    result = Awq(Options()).quantize_block(decoder.at(scheme), decoder.stats())
    assert list(result) == decoder.block.names()
    # Nothing is rounded in place: the codes stand for the weights as they are now, scaled.
    torch.testing.assert_close(decoder.run(), before, rtol=1e-5, atol=1e-5)
    for name, layer in result.items():
        weight = decoder.block.linear(name).weight.detach()
        assert layer.codes.shape == weight.shape
        assert layer.codes.dtype == layer.zero.dtype == torch.uint8
        w_hat = dequantize(layer.codes, layer.scale, layer.zero)
        assert (w_hat - weight).square().sum() < 0.1 * weight.square().sum()


def test_the_hessian_after_folding_is_the_one_that_would_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, used = Decoder(), []
    monkeypatch.setattr(Awq, "_round", lambda self, weight, hessian, scheme: used.append(hessian))
    Awq(Options()).quantize_block(decoder.at(Scheme.parse("w3g32")), decoder.stats())
    measured = decoder.stats()
    for name, hessian in zip(decoder.block.names(), used, strict=True):
        torch.testing.assert_close(hessian, measured[name].hessian, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("spelling", ["w2g32", "w3g64", "w4g32", "w8-row", "w2g32-sym", "w3g128-sym"])
def test_less_output_error_than_rounding(spelling: str, clip: str) -> None:
    decoder, scheme = Decoder(), Scheme.parse(spelling)
    # The outputs of v and up are rescaled, so that their errors before and after are not the same quantity.
    names = [name for name in decoder.block.names() if name not in ("self_attn.v_proj", "mlp.up_proj")]

    def total(result: dict[str, QuantizedWeight]) -> float:
        stats = decoder.stats()
        return sum(
            loss(result[name], decoder.block.linear(name).weight.detach(), stats[name].hessian) for name in names
        )

    plain = total({name: rounded(decoder.block.linear(name).weight.detach(), scheme, clip) for name in names})
    scaled = total(Awq(Options(clip=clip)).quantize_block(decoder.at(scheme), decoder.stats()))
    assert scaled < plain


@pytest.mark.parametrize("spelling", ["w2g32", "w3g32"])
def test_the_whole_block_is_closer_than_after_rounding(spelling: str) -> None:
    scheme, errors = Scheme.parse(spelling), []
    for quantizer in (Awq(Options()), None):
        decoder = Decoder()
        before = decoder.run()
        if quantizer is not None:
            result = quantizer.quantize_block(decoder.at(scheme), decoder.stats())
        else:
            result = {n: rounded(decoder.block.linear(n).weight.detach(), scheme, "mse") for n in decoder.block.names()}
        with torch.no_grad():
            for name, layer in result.items():
                decoder.block.linear(name).weight.copy_(dequantize(layer.codes, layer.scale, layer.zero))
        errors.append(float((decoder.run() - before).square().mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("options", [{"duo": True}, {"judge": "block"}, {"judge": "block", "rounding": "gptq"}])
def test_every_search_leaves_the_same_function(options: dict) -> None:
    decoder, scheme = Decoder(), Scheme.parse("w2g32")
    with torch.no_grad():  # so that magnitudes differ between the copies of a value head
        decoder.block.linear("self_attn.o_proj").weight.mul_(torch.linspace(0.1, 3, 128))
    before, awq = decoder.run(), Awq(Options(grid=6, **options))
    awq.quantize_block(replace(decoder.at(scheme), streams=decoder.streams()), decoder.stats())
    torch.testing.assert_close(decoder.run(), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounding", [None, "gptq"])
def test_judged_by_its_output_the_block_is_closer(rounding: str | None) -> None:
    scheme, errors = Scheme.parse("w2g32"), []
    for judge in ("layers", "block"):
        decoder = Decoder()
        before = decoder.run()
        options = Options(judge=judge, rounding=rounding)
        assert ("streams" in Awq(options).needs) is (judge == "block")
        block = replace(decoder.at(scheme), streams=decoder.streams())
        made = Awq(options).quantize_block(block, decoder.stats())
        with torch.no_grad():
            for name, layer in made.items():
                decoder.block.linear(name).weight.copy_(dequantize(layer.codes, layer.scale, layer.zero))
        moved = (decoder.run() - before).square().sum(-1)
        errors.append(float((moved / before.square().sum(-1)).mean()))
    assert errors[1] < errors[0]


def test_heads_that_read_one_value_share_their_scale() -> None:
    fold = Fold(nn.Linear(4, 4), (), repeats=2, head=2)
    magnitude = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert fold.share(magnitude).tolist() == [2.0, 3.0, 2.0, 3.0, 6.0, 7.0, 6.0, 7.0]


def test_a_bias_before_is_folded_too() -> None:
    torch.manual_seed(0)
    for before in (nn.LayerNorm(32), nn.Linear(32, 32)):
        nn.init.normal_(before.bias)
        reader, x = nn.Linear(32, 16), torch.randn(5, 32)
        module = nn.ModuleDict({"before": before, "reader": reader})
        fold = Fold.find(Block("b", module, [], {}), SharedInput(("reader",), "before"))
        assert fold is not None
        expected = reader(before(x))
        fold.apply(torch.randn(32).exp())
        torch.testing.assert_close(reader(before(x)), expected, rtol=1e-5, atol=1e-5)


class OnePlusNorm(nn.Module):
    """Gemma's: multiplies by `1 + weight`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


def test_nothing_is_folded_where_it_would_change_the_function() -> None:
    class Attention(nn.Module):
        """Values narrower than the output, and no word on the size of a head."""

        def __init__(self) -> None:
            super().__init__()
            self.v_proj, self.o_proj = nn.Linear(32, 16), nn.Linear(32, 32)

    module = nn.ModuleDict({"norm": OnePlusNorm(32), "plain": nn.LayerNorm(32), "reader": nn.Linear(32, 16)})
    module["attention"] = Attention()
    block = Block("b", module, [], {})
    before = copy.deepcopy(module.state_dict())
    assert Fold.find(block, SharedInput(("reader",), "norm")) is None
    assert Fold.find(block, SharedInput(("reader",), None)) is None
    assert Fold.find(block, SharedInput(("attention.o_proj",), "attention.v_proj")) is None
    assert Fold.find(block, SharedInput(("reader",), "plain")) is not None
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_folding_in_bfloat16_stays_within_its_rounding() -> None:
    decoder = Decoder(torch.bfloat16)
    before = decoder.run().float()
    result = Awq(Options()).quantize_block(decoder.at(Scheme.parse("w8g32")), decoder.stats())
    assert all(layer.scale.dtype == torch.float32 for layer in result.values())
    assert (decoder.run().float() - before).square().mean() < 1e-4 * before.square().mean()


def test_an_input_that_is_always_zero_is_left_alone() -> None:
    decoder = Decoder()
    decoder.x.zero_()
    result = Awq(Options()).quantize_block(decoder.at(Scheme.parse("w2g32")), decoder.stats())
    assert all(torch.isfinite(layer.scale).all() for layer in result.values())


def test_some_inputs_that_are_always_zero_do_no_harm() -> None:
    decoder = Decoder()
    stats = decoder.stats()
    for name in INPUTS[0].names:
        stats[name].absmean[:7] = 0
        stats[name].hessian[:7] = stats[name].hessian[:, :7] = 0
    before = decoder.run()
    Awq(Options()).quantize_block(decoder.at(Scheme.parse("w2g32")), stats)
    torch.testing.assert_close(decoder.run(), before, rtol=1e-5, atol=1e-5)


def test_a_layer_by_itself_is_rounded_with_a_clip_search() -> None:
    decoder, scheme, name = Decoder(), Scheme.parse("w2g32"), "mlp.down_proj"
    weight, stats = decoder.block.linear(name).weight.detach(), decoder.stats()[name]
    result = Awq(Options()).quantize_linear(weight, stats, scheme)
    assert loss(result, weight, stats.hessian) < loss(rounded(weight, scheme, "mse"), weight, stats.hessian)


def test_statistics_that_are_not_finite_stop_with_the_layer_named() -> None:
    decoder = Decoder()
    stats = decoder.stats()
    stats["mlp.down_proj"].absmean[0] = torch.nan
    with pytest.raises(NumericsError, match=r"model\.layers\.0\.mlp\.down_proj"):
        Awq(Options()).quantize_block(decoder.at(Scheme.parse("w2g32")), stats)


class TestConformance(QuantizerSuite):
    """What every quantizer promises."""

    name = "awq"


def test_another_quantizer_may_round_what_was_scaled() -> None:
    by_gptq, scheme = Decoder(), Scheme.parse("w2g32")
    before = by_gptq.run()
    made = Awq(Options(rounding="gptq")).quantize_block(by_gptq.at(scheme), by_gptq.stats())
    torch.testing.assert_close(by_gptq.run(), before, rtol=1e-5, atol=1e-5)
    by_itself = Decoder()
    plain = Awq(Options()).quantize_block(by_itself.at(scheme), by_itself.stats())
    assert list(made) == list(plain)
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        losses = [
            loss(layers[name], decoder.block.linear(name).weight.detach(), decoder.stats()[name].hessian)
            for decoder, layers in ((by_gptq, made), (by_itself, plain))
        ]
        assert losses[0] < 0.8 * losses[1]


@pytest.mark.parametrize("rounding", ["awq", "block-ap", {"method": "gptq", "token_weights": "saliency"}])
def test_a_quantizer_that_looks_at_more_than_the_hessian_cannot_round(rounding: str | dict) -> None:
    with pytest.raises(RqatError, match=r"awq.rounding: .* needs .*, which awq does not scale"):
        Awq(Options(rounding=rounding))


def test_dividing_by_the_weights_magnitude_is_tried_beside_the_plain_scales() -> None:
    decoder, scheme = Decoder(), Scheme.parse("w3g32")
    weight = decoder.block.linear("self_attn.q_proj").weight.detach() * torch.linspace(0.1, 3, 128)
    stats = decoder.stats()["self_attn.q_proj"]
    plain, duo = (list(Awq(Options(grid=4, duo=duo))._tried({scheme: weight}, stats.absmean)) for duo in (False, True))
    assert len(duo) == 2 * len(plain) == 8
    assert all(torch.equal(*pair) for pair in zip(plain, duo, strict=False))
    found = [Awq(Options(duo=duo))._search({scheme: weight}, stats.hessian, stats.absmean)[0] for duo in (False, True)]
    costs = [Awq(Options())._cost(weight, scale, stats.hessian, scheme) for scale in found]
    assert costs[1] <= costs[0]
