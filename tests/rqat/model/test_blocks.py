"""The walk: every block sees the quantized ones before it, weights become w_hat, and it can be interrupted anywhere."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rqat import (
    Block,
    DataError,
    LinearStats,
    ModelError,
    NumericsError,
    PluginError,
    QuantizedWeight,
    Quantizer,
    Scheme,
    Schemes,
)
from rqat.model.activations import TokenBatch
from rqat.model.blocks import describe_blocks, quantize_model
from rqat.model.checkpoint import save_checkpoint
from rqat.model.output_error import relative_error
from rqat_kernels.grid import dequantize, fit_minmax, quantize
from tests.tiny import tiny_model, tiny_tokenizer

SCHEME = Scheme.parse("w2g32")


class Rounding(Quantizer):
    """Rounds to nearest and remembers the statistics it was given, by layer."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: dict[str, LinearStats] = {}

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
        scale, zero = fit_minmax(weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric)
        return QuantizedWeight(quantize(weight, scale, zero, scheme.max_code), scale, zero.to(torch.uint8))

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        self.seen |= {f"{block.name}.{name}": one for name, one in stats.items()}
        return super().quantize_block(block, stats)


class Watching(Rounding):
    needs = frozenset({"hessian", "absmean"})


class Folding(Watching):
    """Halves the norms before q, k, v and before gate, up, and doubles those layers; as AWQ does with other factors."""

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        for group in block.inputs:
            before = block.module.get_submodule(group.before) if group.before else None
            if before is not None and not isinstance(before, nn.Linear):
                before.weight.mul_(0.5)
                for name in group.names:
                    block.linear(name).weight.mul_(2)
        return super().quantize_block(block, stats)


class Interrupted(Folding):
    """Is killed when it gets to the block of that name."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        if block.name == self.at:
            raise KeyboardInterrupt
        return super().quantize_block(block, stats)


def tokens(batches: int = 3, rows: int = 4, length: int = 32) -> list[TokenBatch]:
    generator = torch.Generator().manual_seed(1)
    return [TokenBatch(torch.randint(3, 96, (rows, length), generator=generator)) for _ in range(batches)]


def inputs_of(model: PreTrainedModel, layer: str, batches: list[TokenBatch]) -> Tensor:
    """What a layer reads in the model's own forward pass, without padding: `(T, I)`."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    kept = [
        x.flatten(0, 1) if b.attention_mask is None else x[b.attention_mask] for x, b in zip(seen, batches, strict=True)
    ]
    return torch.cat(kept)


def test_statistics_are_those_of_the_quantized_model_so_far() -> None:
    model, quantizer, batches = tiny_model(layers=3), Watching(), tokens()
    original = copy.deepcopy(model)
    quantize_model(model, batches, quantizer, SCHEME)
    names = ("self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    for block in range(3):
        # The model as it was when this block was looked at: quantized up to here, original from here on.
        so_far = copy.deepcopy(original)
        for done in range(block):
            so_far.model.layers[done].load_state_dict(model.model.layers[done].state_dict())
        for name in (f"model.layers.{block}.{name}" for name in names):
            x, stats = inputs_of(so_far, name, batches), quantizer.seen[name]
            assert stats.hessian is not None
            assert stats.absmean is not None
            assert stats.tokens == len(x) == 3 * 4 * 32
            torch.testing.assert_close(stats.hessian, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stats.absmean, x.abs().mean(0), rtol=1e-4, atol=1e-6)


def test_layers_with_one_input_share_one_object_and_only_what_is_needed_is_there() -> None:
    class Means(Rounding):
        needs = frozenset({"absmean"})

    quantizer = Means()
    quantize_model(tiny_model(), tokens(), quantizer, SCHEME)
    seen = {name.removeprefix("model.layers.0."): stats for name, stats in quantizer.seen.items()}
    assert seen["self_attn.q_proj"] is seen["self_attn.k_proj"] is seen["self_attn.v_proj"]
    assert seen["mlp.gate_proj"] is seen["mlp.up_proj"] is not seen["mlp.down_proj"]
    assert all(stats.hessian is None and stats.absmean is not None for stats in seen.values())


def test_weights_become_w_hat_and_nothing_else_moves() -> None:
    model = tiny_model(tied=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers, reports = quantize_model(model, tokens(), Watching(), SCHEME)
    assert list(layers) == [report.name for report in reports]
    assert len(layers) == 14
    for name, tensor in model.state_dict().items():
        layer = layers.get(name.removesuffix(".weight"))
        expected = before[name] if layer is None else dequantize(layer.codes, layer.scale, layer.zero)
        assert torch.equal(tensor, expected), name


def test_what_needs_no_statistics_needs_no_data_and_no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(nn.Linear, "forward", None)
    monkeypatch.setattr(nn.Embedding, "forward", None)
    layers, reports = quantize_model(model, [], Rounding(), SCHEME)
    assert len(layers) == 14
    assert all(0 < report.error < 1 for report in reports if report.error is not None)
    assert {report.bits for report in reports} == {2 + 18 / 32}


def test_statistics_without_data_are_refused() -> None:
    with pytest.raises(DataError, match=r"Watching needs calibration data \(absmean and hessian\)"):
        quantize_model(tiny_model(), [], Watching(), SCHEME)


def test_padding_is_never_counted() -> None:
    batch = tokens(1)[0]
    mask = torch.ones_like(batch.input_ids, dtype=torch.bool)
    mask[0, 20:] = False
    mask[3, 5:] = False
    seen = []
    for filler in (0, 77):
        ids = batch.input_ids.masked_fill(~mask, filler)
        quantizer = Watching()
        quantize_model(tiny_model(), [TokenBatch(ids, mask)], quantizer, SCHEME)
        seen.append(quantizer.seen)
    for name, stats in seen[0].items():
        assert stats.tokens == int(mask.sum())
        assert stats.hessian is not None
        assert torch.equal(stats.hessian, seen[1][name].hessian), name


def test_a_padded_batch_counts_like_its_rows_one_by_one() -> None:
    batch = tokens(1)[0]
    mask = torch.arange(32)[None] < torch.tensor([32, 20, 7, 1])[:, None]
    whole, single = Watching(), Watching()
    quantize_model(tiny_model(), [TokenBatch(batch.input_ids, mask)], whole, SCHEME)
    rows = [TokenBatch(ids[None, :length]) for ids, length in zip(batch.input_ids, (32, 20, 7, 1), strict=True)]
    quantize_model(tiny_model(), rows, single, SCHEME)
    for name, stats in whole.seen.items():
        torch.testing.assert_close(stats.hessian, single.seen[name].hessian, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "sliding"])
def test_other_families(family: str) -> None:
    shape: dict[str, int] = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=8)).eval()
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape)).eval()
    else:  # sliding windows from the second block on: masks differ between blocks
        model = Qwen2ForCausalLM(
            Qwen2Config(**shape, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        ).eval()
    quantizer, batches = Watching(), tokens()
    layers, _ = quantize_model(model, batches, quantizer, SCHEME)
    assert len(layers) == 21
    last = "model.layers.2.self_attn.q_proj"
    x = inputs_of(model, last, batches)
    torch.testing.assert_close(quantizer.seen[last].hessian, x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_indivisible_layers_are_all_listed_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(hidden=96)  # 96 inputs everywhere but 192 at down_proj
    monkeypatch.setattr(nn.Embedding, "forward", None)
    with pytest.raises(ModelError) as caught:
        quantize_model(model, tokens(), Watching(), Scheme.parse("w2g64"))
    for block in range(2):
        for name in ("q_proj (96, 96)", "k_proj (48, 96)", "v_proj (48, 96)", "o_proj (96, 96)"):
            assert f"model.layers.{block}.self_attn.{name}" in caught.value.message
        assert f"model.layers.{block}.mlp.gate_proj (192, 96)" in caught.value.message
    assert "12 layers" in caught.value.message
    assert "down_proj" not in caught.value.message
    assert "Use a group of 32, 16, 8" in caught.value.hint


def test_indivisible_layers_can_be_left_alone() -> None:
    model = tiny_model(hidden=96)
    layers, _ = quantize_model(model, tokens(), Watching(), Scheme.parse("w2g64"), indivisible="skip")
    assert list(layers) == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]


def test_skipped_layers_stay_and_nothing_is_folded_where_they_read() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    skip = ("*.k_proj", "model.layers.1.mlp.*", "lm_head")
    first, second = describe_blocks(model, Schemes(default=SCHEME), skip=skip)
    assert [(group.names, group.before) for group in first.inputs] == [
        (("self_attn.q_proj", "self_attn.v_proj"), None),
        (("self_attn.o_proj",), "self_attn.v_proj"),
        (("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
        (("mlp.down_proj",), "mlp.up_proj"),
    ]
    assert second.names() == ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layers, _ = quantize_model(model, tokens(), Watching(), SCHEME, skip=skip)
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(tensor, before[name]), name


def test_down_proj_is_not_folded_into_a_skipped_up_proj() -> None:
    block = describe_blocks(tiny_model(), Schemes(default=SCHEME), skip=("*.up_proj", "*.v_proj"))[0]
    assert [group.before for group in block.inputs] == [None, None, None, None]


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"quantize.skip: '\*.q_porj' matches no linear layer"):
        quantize_model(tiny_model(), [], Rounding(), SCHEME, skip=("*.q_porj",))
    with pytest.raises(ModelError, match="No layer is left"):
        quantize_model(tiny_model(), [], Rounding(), SCHEME, skip=("model.*",))


def test_activations_that_overflow_are_named() -> None:
    model = tiny_model(layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = 3e38
        model.model.layers[1].input_layernorm.weight.fill_(1e5)
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.self_attn\.o_proj is not finite"):
        quantize_model(model, tokens(), Watching(), SCHEME)
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[5:90, 3] = math.inf
    with pytest.raises(NumericsError, match=r"output of model\.embed_tokens is not finite"):
        quantize_model(model, tokens(), Watching(), SCHEME)


def files_of(folder: Path, model: PreTrainedModel, layers: Mapping[str, QuantizedWeight]) -> dict[str, bytes]:
    folder.mkdir()
    save_checkpoint(folder, model, tiny_tokenizer(), layers)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_walk_ends_in_the_same_bytes(tmp_path: Path, at: int) -> None:
    unbroken = tiny_model(layers=3)
    expected, expected_reports = quantize_model(unbroken, tokens(), Folding(), SCHEME)
    kept = tmp_path / "blocks"
    kept.mkdir()
    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_model(layers=3), tokens(), Interrupted(f"model.layers.{at}"), SCHEME, resume_dir=kept)
    assert len(list(kept.iterdir())) == at
    model, quantizer = tiny_model(layers=3), Folding()
    layers, reports = quantize_model(model, tokens(), quantizer, SCHEME, resume_dir=kept)
    assert {name.split(".")[2] for name in quantizer.seen} == {str(block) for block in range(at, 3)}
    assert files_of(tmp_path / "a", model, layers) == files_of(tmp_path / "b", unbroken, expected)
    assert [report.error for report in reports] == [report.error for report in expected_reports]
    again = tiny_model(layers=3)
    layers, _ = quantize_model(again, tokens(), Interrupted("model.layers.0"), SCHEME, resume_dir=kept)
    assert files_of(tmp_path / "c", again, layers) == files_of(tmp_path / "d", unbroken, expected)


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone", "other scheme"])
def test_a_damaged_block_and_all_after_it_are_done_again(tmp_path: Path, damage: str) -> None:
    model = tiny_model(layers=3)
    expected, _ = quantize_model(model, tokens(), Folding(), SCHEME, resume_dir=tmp_path)
    path = tmp_path / "model.layers.1.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"not a safetensors file at all")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"w2g32", b"w3g32"))
    again, quantizer = tiny_model(layers=3), Folding()
    layers, _ = quantize_model(again, tokens(), quantizer, SCHEME, resume_dir=tmp_path)
    assert {name.split(".")[2] for name in quantizer.seen} == {"1", "2"}
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert list(layers) == list(expected)


def test_error_is_the_share_of_the_output_that_moved() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, w_hat = (torch.randn(shape, generator=generator) for shape in ((500, 24), (8, 24), (8, 24)))
    expected = (x @ (w_hat - w).T).square().sum() / (x @ w.T).square().sum()
    assert relative_error(w, w_hat, x.T @ x / 500) == pytest.approx(float(expected), rel=1e-5)
    assert relative_error(w, w_hat, None) == pytest.approx(
        float((w_hat - w).square().sum() / w.square().sum()), rel=1e-6
    )
    assert relative_error(w, w, None) == 0
    assert relative_error(torch.zeros(8, 24), torch.zeros(8, 24), None) == 0


def test_folded_factors_are_taken_out_of_the_error() -> None:
    _, folded = quantize_model(tiny_model(), tokens(), Folding(), SCHEME)
    _, plain = quantize_model(tiny_model(), tokens(), Watching(), SCHEME)
    for one, other in zip(folded, plain, strict=True):
        if one.name.endswith(("o_proj", "down_proj")):  # their `before` was doubled, for its own input: not a fold
            assert one.error is None
        else:  # a power of two changes neither codes nor relative error
            assert one.error == pytest.approx(other.error, rel=1e-4)


def test_the_error_after_a_fold_is_that_of_the_output() -> None:
    class Uneven(Watching):
        def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
            factor = torch.linspace(0.5, 2, 256)
            block.linear("mlp.up_proj").weight.div_(factor[:, None])
            block.linear("mlp.down_proj").weight.mul_(factor)
            return super().quantize_block(block, stats)

    model, name = tiny_model(layers=1), "model.layers.0.mlp.down_proj"
    original, x = model.get_submodule(name).weight.detach().clone(), inputs_of(model, name, tokens())
    layers, reports = quantize_model(model, tokens(), Uneven(), SCHEME)
    w_hat = dequantize(layers[name].codes, layers[name].scale, layers[name].zero)
    moved = (x / torch.linspace(0.5, 2, 256)) @ w_hat.T - x @ original.T
    assert reports[-1].name == name
    assert reports[-1].error == pytest.approx(float(moved.square().sum() / (x @ original.T).square().sum()), rel=1e-3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda q: None, "returned"),
        (lambda q: QuantizedWeight(q.codes.int(), q.scale, q.zero), "codes are torch.int32"),
        (lambda q: QuantizedWeight(q.codes[:, :-1], q.scale, q.zero), "codes are"),
        (lambda q: QuantizedWeight(q.codes + 1, q.scale, q.zero), "exceed 3"),
        (lambda q: QuantizedWeight(q.codes, q.scale * 1.0001, q.zero), "snap_scale"),
        (lambda q: QuantizedWeight(q.codes, -q.scale, q.zero), "snap_scale"),
        (lambda q: QuantizedWeight(q.codes, q.scale.double(), q.zero), "scale is torch.float64"),
        (lambda q: QuantizedWeight(q.codes, q.scale, q.zero.float()), "zero is torch.float32"),
    ],
)
def test_a_quantizer_is_held_to_its_contract(fault: object, message: str) -> None:
    class Faulty(Rounding):
        def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
            result = super().quantize_block(block, stats)
            wrong = fault(result.pop("mlp.up_proj"))  # type: ignore[operator]
            return result if wrong is None else result | {"mlp.up_proj": wrong}

    with pytest.raises(PluginError, match=message) as caught:
        quantize_model(tiny_model(), [], Faulty(), SCHEME)
    assert "model.layers.0" in caught.value.message


def test_symmetric_zero_points_are_checked() -> None:
    class Lopsided(Rounding):
        def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
            result = super().quantize_linear(weight, stats, scheme)
            return QuantizedWeight(result.codes, result.scale, result.zero * 0)

    with pytest.raises(PluginError, match="zero points are not 2"):
        quantize_model(tiny_model(), [], Lopsided(), Scheme.parse("w2g32-sym"))


def test_progress_only_rises_and_ends_at_the_number_of_blocks() -> None:
    done: list[float] = []
    quantize_model(tiny_model(), tokens(), Watching(), SCHEME, progress=lambda share, note: done.append(share))
    assert done == sorted(done)
    assert done[-1] == 2
