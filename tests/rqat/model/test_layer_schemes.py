"""A scheme per layer, and the output head: chosen, quantized, saved, loaded, packed and trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rqat import ModelError, Scheme, Schemes, grid_of, load_packed
from rqat.model.activations import TokenBatch
from rqat.model.blocks import describe_blocks, quantize_model
from rqat.model.checkpoint import load_checkpoint, load_layers, save_checkpoint
from rqat.model.hub import QUANTIZED_FILE
from rqat.model.layers import choose_layers
from rqat.train.optimizer import QuantizedOptimizer
from rqat_awq import Options as AwqOptions
from rqat_awq.solver import Awq
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from rqat_kernels.packed_linear import PackedLinear
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest
from tests.tiny import tiny_model, tiny_tokenizer

MIXED = Schemes.parse(
    {"default": "w2g32", "*.down_proj": "w3g64", "*.1.self_attn.k_proj": "w4-row-sym", "lm_head": "w4g128"}
)
ENDS = {"model.embed_tokens": (128, 64), "lm_head": (128, 64)}
LINEARS = {f"model.layers.{block}.{name}": (64, 96) for block in (0, 1) for name in ("mlp.up_proj", "mlp.down_proj")}


def tokens() -> list[TokenBatch]:
    return [TokenBatch(torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(1)))]


def mixed(folder: Path, quantizer: object = None) -> torch.nn.Module:
    """An untied tiny model in `MIXED`, saved."""
    model = tiny_model(tied=False)
    chosen = quantizer or RoundToNearest(RtnOptions())
    layers, _ = quantize_model(model, tokens(), chosen, MIXED)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, model, tiny_tokenizer(), layers)
    return model


# -------------------------------------------------------------------------------------------------------- choosing


def test_layers_of_many_blocks_are_told_as_a_pattern() -> None:
    linears = {f"model.layers.{block}.mlp.up_proj": (1536, 576) for block in range(30)}
    linears |= {"model.layers.0.mlp.down_proj": (576, 96), "model.layers.7.mlp.down_proj": (576, 96)}
    with pytest.raises(ModelError) as caught:
        choose_layers(linears, Schemes.parse("w2g128"), ends=ENDS)
    assert "32 layers" in caught.value.message
    few = "model.layers.0.mlp.down_proj (576, 96), model.layers.7.mlp.down_proj (576, 96)"
    assert f"{few}, 30 of *.up_proj (576 input features)." in str(caught.value)
    assert len(caught.value.message) < 300


def test_every_layer_is_divided_by_its_own_group() -> None:
    schemes = Schemes.parse({"default": "w2g96", "*.down_proj": "w3g64"})
    with pytest.raises(ModelError, match=r"2 layers .* groups of 64 do not divide: model.layers.0.mlp.down_proj"):
        choose_layers(LINEARS, schemes, ends=ENDS)
    left = choose_layers(LINEARS, schemes, indivisible="skip", ends=ENDS)
    assert list(left) == [name for name in LINEARS if "up_proj" in name]
    chosen = choose_layers(LINEARS, Schemes.parse({"default": "w2g96", "*.down_proj": "w3g32"}), ends=ENDS)
    assert {name: str(scheme) for name, scheme in chosen.items()} == {
        name: "w3g32" if "down" in name else "w2g96" for name in LINEARS
    }


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.down_porj", r"'\*.down_porj' matches no linear layer of the model. Did you mean '\*.down_proj'?"),
        ("lm_haed", "'lm_haed' matches no linear layer of the model. Did you mean 'lm_head'?"),
        ("embed_token", "'embed_token' matches no linear layer of the model. Did you mean 'embed_tokens'?"),
    ],
)
def test_patterns_that_name_nothing_that_can_be_quantized_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ModelError, match=message.replace("?", r"\?")):
        choose_layers(LINEARS, Schemes.parse({"default": "w2g32", pattern: "w4g32"}), ends=ENDS)


def test_blocks_say_the_scheme_of_every_layer() -> None:
    first, second, end = describe_blocks(tiny_model(tied=False), MIXED)
    assert {name: str(scheme) for name, scheme in second.schemes.items()} == {
        **dict.fromkeys(second.names(), "w2g32"), "mlp.down_proj": "w3g64", "self_attn.k_proj": "w4-row-sym"
    }  # fmt: skip
    assert str(first.schemes["self_attn.k_proj"]) == "w2g32"
    assert (end.name, end.names(), str(end.schemes["lm_head"])) == ("", ["lm_head"], "w4g128")


# -------------------------------------------------------------------------------------------------------- quantizing


@pytest.mark.parametrize(
    "quantizer",
    [RoundToNearest(RtnOptions()), Gptq(GptqOptions()), Awq(AwqOptions(grid=3))],
    ids=["rtn", "gptq", "awq"],
)
def test_every_quantizer_does_each_layer_in_its_own_scheme(quantizer: object) -> None:
    model = tiny_model(tied=False)
    before = model.lm_head.weight.detach().clone()
    layers, reports = quantize_model(model, tokens(), quantizer, MIXED)  # type: ignore[arg-type]
    assert len(layers) == 15
    assert list(layers)[-1] == "lm_head"
    for name, layer in layers.items():
        assert layer.scheme == MIXED.of(name)
        assert torch.equal(model.get_parameter(f"{name}.weight"), grid_of(MIXED.of(name)).decode_layer(layer))
        assert int(layer.codes.max()) <= MIXED.of(name).max_code
    moved = (model.lm_head.weight - before).square().sum() / before.square().sum()
    assert 0 < moved < 0.05
    bits = {report.name: report.bits for report in reports}
    assert bits["model.layers.0.mlp.down_proj"] == pytest.approx(3 + 19 / 64)
    assert reports[-1].error is not None


def test_gptq_of_mixed_layers_is_gptq_of_each_by_itself() -> None:
    """Layers that share an input are stacked only where their schemes are equal."""
    found = []
    for schemes in (MIXED, Schemes.parse("w2g32")):
        layers, _ = quantize_model(tiny_model(tied=False, layers=1), tokens(), Gptq(GptqOptions()), schemes.model_copy(
            update={"patterns": tuple(pair for pair in schemes.patterns if "1.self" not in pair[0])}
        ))  # fmt: skip
        found.append(layers["model.layers.0.self_attn.q_proj"])
    assert found[0].equals(found[1])


def test_an_interrupted_walk_ends_in_the_same_layers_the_head_included(tmp_path: Path) -> None:
    found, _ = quantize_model(tiny_model(tied=False), tokens(), Gptq(GptqOptions()), MIXED, resume_dir=tmp_path)
    expected = dict(found)  # read before the second walk may write the same files
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "end.safetensors"
    again = tiny_model(tied=False)
    layers, _ = quantize_model(again, tokens(), Gptq(GptqOptions()), MIXED, resume_dir=tmp_path)
    assert all(layer.equals(expected[name]) for name, layer in layers.items())
    assert torch.equal(again.lm_head.weight, grid_of(MIXED.of("lm_head")).decode_layer(layers["lm_head"]))


# -------------------------------------------------------------------------------------------------------- saving


def facts_of(folder: Path) -> dict[str, object]:
    with safe_open(folder / QUANTIZED_FILE, framework="pt") as file:
        return json.loads(file.metadata()["rqat"])  # type: ignore[no-any-return]


def test_mixed_layers_are_saved_and_loaded_with_their_schemes(tmp_path: Path) -> None:
    model = mixed(tmp_path)
    assert "scheme" not in facts_of(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert {name: layer.scheme for name, layer in loaded.layers.items()} == {n: MIXED.of(n) for n in loaded.layers}
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_single_scheme_is_written_once_as_it_always_was(tmp_path: Path) -> None:
    model = tiny_model()
    layers, _ = quantize_model(model, [], RoundToNearest(RtnOptions()), Scheme.parse("w2g32"))
    save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)
    facts = facts_of(tmp_path)
    assert list(facts) == ["format", "grid", "scheme", "layers", "notes"]
    assert (facts["grid"], facts["scheme"]) == ("uniform", "w2g32")


def test_another_grid_is_saved_and_needs_its_plugin(tmp_path: Path) -> None:
    model, scheme = tiny_model(), Scheme.parse("w2g32-seq")
    layers, _ = quantize_model(model, [], RoundToNearest(RtnOptions()), scheme)
    save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)
    assert facts_of(tmp_path)["grid"] == "seq"
    assert all(layer.equals(layers[name]) for name, layer in load_layers(tmp_path / QUANTIZED_FILE).items())
    path = tmp_path / QUANTIZED_FILE
    path.write_bytes(path.read_bytes().replace(b"seq", b"sew"))
    with pytest.raises(ModelError, match=r"is on the grid 'sew': 'sew' is not a grid. Install the plugin"):
        load_checkpoint(tmp_path)


def test_packed_layers_take_mixed_schemes_and_refuse_other_grids(tmp_path: Path) -> None:
    model = mixed(tmp_path / "mixed")
    packed, _ = load_packed(tmp_path / "mixed")
    kinds = {name: module.bits for name, module in packed.named_modules() if isinstance(module, PackedLinear)}
    assert kinds == {name: MIXED.of(name).bits for name in kinds}
    assert len(kinds) == 15
    with torch.no_grad():
        assert torch.equal(packed(tokens()[0].input_ids).logits, model(tokens()[0].input_ids).logits)
    other = tiny_model()
    layers, _ = quantize_model(other, [], RoundToNearest(RtnOptions()), Scheme.parse("w2g32-seq"))
    (tmp_path / "seq").mkdir()
    save_checkpoint(tmp_path / "seq", other, tiny_tokenizer(), layers)
    with pytest.raises(
        ModelError, match=r"is on the grid 'seq'; packed weights are uniform. Use --backend transformers"
    ):
        load_packed(tmp_path / "seq")


# -------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "schemes",
    [MIXED, Schemes.parse("w2g32-seq"), Schemes.parse({"default": "w2g32", "*.up_proj": "w2g32-seq"})],
    ids=str,
)
def test_layers_are_trained_each_on_its_own_grid_and_resumed(tmp_path: Path, schemes: Schemes) -> None:
    made = []
    for _ in range(2):
        model = tiny_model(tied=False)
        layers, _ = quantize_model(model, [], RoundToNearest(RtnOptions()), schemes)
        made.append(
            (model, QuantizedOptimizer(model, layers, lr=1e-2, scale_lr=1e-2, zero_lr=1e-2, train_embedding=True))
        )
    (model, optimizer), (second_model, second) = made
    groups = [bucket.grid.scheme for bucket in optimizer.buckets]
    assert set(groups) == {schemes.of(name) for name in optimizer.quantized_layers()}
    before = optimizer.quantized_layers()
    losses = []
    for step in range(4):
        losses.append(stepped(model, optimizer))
        if step == 1:
            second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses[-1] < losses[0]
    for _ in range(2):
        stepped(second_model, second)
    after = optimizer.quantized_layers()
    for name, layer in after.items():
        assert torch.equal(model.get_parameter(f"{name}.weight"), grid_of(schemes.of(name)).decode_layer(layer))
        assert layer.equals(second.quantized_layers()[name])
        fixed = grid_of(schemes.of(name)).fixed_zero
        assert not (fixed and not torch.equal(layer.zero, before[name].zero))
    assert any(not torch.equal(layer.codes, before[name].codes) for name, layer in after.items())
    save_checkpoint(tmp_path, model, tiny_tokenizer(), after)
    assert all(layer.equals(after[name]) for name, layer in load_checkpoint(tmp_path).layers.items())


def stepped(model: torch.nn.Module, optimizer: QuantizedOptimizer) -> float:
    ids = tokens()[0].input_ids
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_a_state_of_other_schemes_is_not_resumed(tmp_path: Path) -> None:
    optimizers = []
    for schemes in (MIXED, Schemes.parse({"default": "w2g32", "*.down_proj": "w4g64", "lm_head": "w4g128"})):
        model = tiny_model(tied=False)
        layers, _ = quantize_model(model, [], RoundToNearest(RtnOptions()), schemes)
        optimizers.append(QuantizedOptimizer(model, layers, lr=1e-2))
    with pytest.raises(Exception, match="does not fit this model: scheme"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
