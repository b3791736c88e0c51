"""block-ap: blocks that come closer to the original's outputs than what they start from, and never farther away."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

import rqat
from rqat import QuantizedWeight, RecipeError, Scheme, Schemes, Start, Streams
from rqat.model.activations import TokenBatch
from rqat.model.block_store import LayerReport
from rqat.model.blocks import quantize_model
from rqat.registry import Registry
from rqat.stages.quantize.command import quantize_plan
from rqat.testing import QuantizerSuite
from rqat_block_ap import Options
from rqat_block_ap.solver import BlockAp
from rqat_block_ap.task import Task
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from tests.tiny import tiny_model

FAST = {"start": "rtn", "epochs": 3, "batch": 4, "lr": 2.5e-2, "scale_lr": 3e-3, "held_out": 4, "loss": "mse"}


def batches() -> list[TokenBatch]:
    """Two batches of sequences, the second one with padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 96, (16, 32), generator=generator) for _ in range(2)]
    mask = torch.ones(16, 32, dtype=torch.bool)
    mask[2, 9:] = mask[3, 2:] = False
    return [TokenBatch(ids[0]), TokenBatch(ids[1], mask)]


def quantized(
    scheme: str = "w2g32", model: PreTrainedModel | None = None, *, resume_dir: Path | None = None, **options: object
) -> tuple[PreTrainedModel, dict[str, QuantizedWeight], list[LayerReport]]:
    """A tiny model by block-ap."""
    model = model or tiny_model(hidden=64)
    layers, reports = quantize_model(
        model, batches(), BlockAp(Options(**{**FAST, **options})), Schemes.parse(scheme), resume_dir=resume_dir
    )
    return model, layers, reports


def by_gptq(scheme: str = "w2g32", model: PreTrainedModel | None = None, **options: object) -> PreTrainedModel:
    """The same model by the quantizer that block-ap starts from."""
    model = model or tiny_model(hidden=64)
    quantize_model(model, batches(), Gptq(GptqOptions(**options)), Schemes.parse(scheme))
    return model


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, the errors of blocks among it."""
    caplog.set_level(logging.INFO, logger="rqat")
    return caplog


def errors(told: pytest.LogCaptureFixture) -> list[tuple[float, float]]:
    """Of every block the error on sequences held out, before training and after; of what was logged so far."""
    found = (re.search(r"held out ([\d.]+), trained ([\d.]+)", message) for message in told.messages)
    return [(float(one[1]), float(one[2])) for one in found if one]


@torch.no_grad()
def error(model: PreTrainedModel) -> float:
    """Mean square difference from the original's last hidden states on tokens that were not calibrated on."""
    tokens = torch.randint(3, 96, (8, 16), generator=torch.Generator().manual_seed(2))
    original = tiny_model(hidden=64)
    return float((model.model(tokens)[0] - original.model(tokens)[0]).square().mean())


@pytest.mark.parametrize("scheme", ["w2g32", "w3g32-sym", "w2g32-seq"])
def test_blocks_come_closer_to_the_original_than_their_start(scheme: str, told: pytest.LogCaptureFixture) -> None:
    model, layers, _ = quantized(scheme)
    assert len(errors(told)) == 2
    assert all(after < before for before, after in errors(told))
    assert all(torch.equal(model.get_parameter(f"{n}.weight"), decoded(layer)) for n, layer in layers.items())


def decoded(layer: QuantizedWeight) -> Tensor:
    assert layer.scheme is not None
    return rqat.grid_of(layer.scheme).decode_layer(layer)


def test_a_model_comes_closer_than_by_gptq(told: pytest.LogCaptureFixture) -> None:
    """Though not by much: on random weights and tokens gptq is good already, and its start needs a lower rate."""
    made, _, _ = quantized(start="gptq", epochs=8, lr=1e-2, scale_lr=1e-3)
    assert all(after < before for before, after in errors(told))
    assert error(made) < 0.97 * error(by_gptq())


def test_the_rate_is_a_share_of_the_size_of_a_block_s_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what suits one model suits another whose weights are ten times as large."""
    rates: list[float] = []
    real = BlockAp._epoch

    def noted(self: BlockAp, epoch: int, task: Task, optimizer: rqat.QuantizedOptimizer, first: list[float]) -> None:
        rates.append(first[0])
        real(self, epoch, task, optimizer, first)

    monkeypatch.setattr(BlockAp, "_epoch", noted)
    model = tiny_model(hidden=64)
    blocks = [[p.detach() for n, p in layer.named_parameters() if "_proj" in n] for layer in model.model.layers]
    with torch.no_grad():
        for weight in blocks[1]:
            weight.mul_(10)
    sizes = [torch.cat([weight.flatten() for weight in block]).square().mean().sqrt().item() for block in blocks]
    quantized(model=model, lr=1e-2, epochs=1)
    assert rates == pytest.approx([1e-2 * size for size in sizes])
    assert rates[1] > 9 * rates[0]


@pytest.mark.parametrize("target", ["original", "inputs"])
@pytest.mark.parametrize("loss", ["mse", "relative"])
def test_every_target_and_loss_is_learnt(target: str, loss: str, told: pytest.LogCaptureFixture) -> None:
    quantized(target=target, loss=loss)
    assert all(after < before for before, after in errors(told))


def test_training_that_diverges_leaves_the_start(told: pytest.LogCaptureFixture) -> None:
    model, _, _ = quantized(start="gptq", lr=50.0, scale_lr=1.0, epochs=2)
    assert all(before == after for before, after in errors(told))
    expected = by_gptq().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_no_epoch_is_the_start_with_its_options() -> None:
    model, _, reports = quantized(epochs=0, start={"method": "gptq", "narrowest": 0.5})
    expected = by_gptq(narrowest=0.5).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not any(report.note for report in reports)


def test_zero_points_are_trained_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    falling = iter(range(1000, 0, -1))
    monkeypatch.setattr(Task, "error", lambda task: float(next(falling)))  # so that the last epoch is kept
    layers = [quantized(zero_lr=rate, scale_lr=None, lr=0.25)[1] for rate in (None, 0.2)]
    start = quantized(epochs=0)[1]
    name = "model.layers.0.mlp.down_proj"
    assert layers[0][name].zero.equal(start[name].zero)
    assert not layers[1][name].zero.equal(start[name].zero)


def test_only_quantized_weights_change_and_gradients_are_as_before() -> None:
    model, original = tiny_model(hidden=64), tiny_model(hidden=64)
    quantized(model=model)
    for name, parameter in model.named_parameters():
        assert (parameter.requires_grad, parameter.grad) == (True, None)
        if "_proj" not in name:
            assert torch.equal(parameter, original.get_parameter(name))


def test_a_scheme_for_each_layer(told: pytest.LogCaptureFixture) -> None:
    schemes = {"default": "w2g32", "*.down_proj": "w4g64-sym", "*.v_proj": "w3-row"}
    _, layers, _ = quantized(schemes)  # type: ignore[arg-type]
    assert layers["model.layers.1.mlp.down_proj"].scheme == Scheme.parse("w4g64-sym")
    assert layers["model.layers.1.self_attn.v_proj"].scheme == Scheme.parse("w3-row")
    assert all(after < before for before, after in errors(told))


@pytest.mark.parametrize("tied", [True, False])
def test_ends_are_those_of_the_start(tied: bool) -> None:
    schemes = {"default": "w2g32", "lm_head": "w4g32"}
    models = [tiny_model(hidden=64, tied=tied) for _ in range(2)]
    made, gptq = BlockAp(Options(**{**FAST, "epochs": 1, "start": "gptq"})), Gptq(GptqOptions())
    for model, quantizer in zip(models, (made, gptq), strict=True):
        _, reports = quantize_model(model, batches(), quantizer, Schemes.parse(schemes))
    assert reports[0 if tied else -1].note == ""
    if tied:  # before the blocks, so on the same inputs
        assert torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)


def test_padding_counts_nothing() -> None:
    """Whatever stands there: targets at padded places are changed, and the loss is not."""
    hidden = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3:] = False
    losses = []
    for far in (0.0, 100.0):
        wanted = hidden + 1
        wanted[1, 3:] += far
        streams = Streams([hidden], [hidden], [wanted], [mask], lambda number, x: x)
        task = Task(streams, Options(held_out=2, loss="mse"))
        losses.append((float(task.loss(0, torch.arange(4))), task.error()))
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(1.0)  # outputs that are the inputs err by all that is to be added


def test_a_step_sees_every_sequence_once_but_those_held_out() -> None:
    hidden = [torch.randn(5, 3, 4), torch.randn(6, 3, 4)]
    streams = Streams(hidden, hidden, [h + 1 for h in hidden], [None, None], lambda number, x: x)
    task = Task(streams, Options(batch=2, held_out=4))
    seen = [(number, row) for number, rows in task.batches(0) for row in rows.tolist()]
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (0, 4), (1, 0), (1, 1), (1, 3), (1, 4), (1, 5)]
    assert task.batches(0)[0][1].tolist() == task.batches(0)[0][1].tolist()
    assert [n for n, _ in task.batches(0)] != [n for n, _ in task.batches(1)] or str(task.batches(0)) != str(
        task.batches(1)
    )


def test_some_sequences_of_a_batch_run_as_they_do_among_all() -> None:
    """Also where the model hands its blocks a mask as large as the batch."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1,
        attn_implementation="eager",
    )  # fmt: skip
    seen = []

    class Watching(BlockAp):
        def quantize_block(self, block, stats):
            streams = block.streams
            rows = torch.tensor([6, 1])
            seen.append((streams.run(0, streams.inputs[0])[rows], streams.run(0, streams.inputs[0][rows])))
            return super().quantize_block(block, stats)

    quantize_model(Qwen2ForCausalLM(config).eval(), batches(), Watching(Options(epochs=0)), Scheme.parse("w4g32"))
    for whole, part in seen:
        torch.testing.assert_close(whole, part)


def test_an_interrupted_walk_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _ = quantized()
    real = BlockAp.quantize_block

    def killed(self, block, stats):
        if block.name.endswith("1"):
            raise KeyboardInterrupt
        return real(self, block, stats)

    monkeypatch.setattr(BlockAp, "quantize_block", killed)
    with pytest.raises(KeyboardInterrupt):
        quantized(resume_dir=tmp_path)
    monkeypatch.setattr(BlockAp, "quantize_block", real)
    torch.manual_seed(5)
    _, resumed, _ = quantized(resume_dir=tmp_path)
    assert all(layer.equals(whole[name]) for name, layer in resumed.items())


def test_a_gradient_that_is_not_finite_ends_a_block_s_training_and_is_told() -> None:
    model, _, reports = quantized(lr=1e38, epochs=2)
    assert all(
        "trained no further: epoch 1" in report.note and "not finite" in report.note
        for report in reports
        if report.note
    )
    expected = quantized(epochs=0)[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_fewer_sequences_than_one_is_held_out_of(told: pytest.LogCaptureFixture) -> None:
    model = tiny_model(hidden=64)
    _, _ = quantize_model(model, batches()[:1], BlockAp(Options(**FAST | {"held_out": 99})), Scheme.parse("w2g32"))
    assert all(after < before for before, after in errors(told))


# ------------------------------------------------------------------------------------------------ the start


def test_what_is_wrong_with_the_start_is_told() -> None:
    registry = Registry.current()
    card = registry.card("quantizer", "block-ap")
    for start, words in (
        ("gtpq", ["gtpq", "gptq"]),
        ({"method": "gptq", "narowest": 0.5}, ["narowest", "narrowest"]),
        ({"method": "gptq", "damp": 3}, ["damp"]),
    ):
        with pytest.raises(RecipeError) as caught:
            registry.options(card, {"start": start})
        assert all(word in str(caught.value) for word in words)
    with pytest.raises(ValidationError):
        Start.model_validate({})


def test_the_start_counts_in_the_fingerprint_by_what_it_is(tmp_path: Path) -> None:
    registry = Registry.current()

    def facts(start: object) -> object:
        options = {} if start is None else {"start": start}
        plan = quantize_plan(
            registry, "builtin:tiny-reasoner", "block-ap", calibration="arith", options=options, export=None
        )
        step = next(step for step in plan.steps if step.variant == "block-ap")
        return plan.facts(step)["parts"]["quantizer"]

    assert facts(None) == facts("gptq") == facts({"method": "gptq", "shrink": 0.0})
    assert facts("gptq") != facts({"method": "gptq", "narrowest": 0.5})
    assert facts("gptq") != facts("rtn")


def test_options_that_train_nothing_are_told() -> None:
    symmetric = rqat.Context(schemes={"a": Scheme.parse("w3g32-sym")})
    assert not list(Options().check(symmetric))
    (nothing,) = Options(lr=0, scale_lr=None).check(rqat.Context())
    assert (nothing.key, nothing.level) == ("lr", "warning")
    assert "'gptq' by itself" in nothing.hint
    (low,) = Options(lr=1e-4).check(rqat.Context())
    assert (low.key, low.level) == ("lr", "warning")
    assert "no more than 0.01 % of the weights' size" in low.text
    (fixed,) = Options(zero_lr=1e-2).check(symmetric)
    assert (fixed.key, fixed.level) == ("zero_lr", "note")
    assert not list(Options(zero_lr=1e-2).check(rqat.Context(schemes={"a": Scheme.parse("w3g32")})))


def test_it_collects_what_its_start_needs() -> None:
    assert BlockAp(Options(start="rtn")).needs == {"hessian", "streams"}
    assert BlockAp(Options(start="awq")).needs == {"hessian", "streams", "absmean"}
    assert not BlockAp(Options(start="rtn")).tied_ends


def test_a_start_that_folds_scales_keeps_them(told: pytest.LogCaptureFixture) -> None:
    """awq changes norms: the training starts from, and ends with, what it made of them."""
    model, layers, _ = quantized("w3g32", start="awq", lr=1e-2)
    folded = tiny_model(hidden=64)
    original = copy.deepcopy(folded.state_dict())
    assert any(not torch.equal(value, original[name]) for name, value in model.state_dict().items() if "norm" in name)
    assert all(after < before for before, after in errors(told))
    assert all(torch.equal(model.get_parameter(f"{n}.weight"), decoded(layer)) for n, layer in layers.items())


class TestConformance(QuantizerSuite):
    """What every quantizer promises."""

    name = "block-ap"
