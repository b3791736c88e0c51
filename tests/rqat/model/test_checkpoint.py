"""A checkpoint gives the model back bit for bit, is the same bytes every time, and damage is told, not loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rqat import ModelError, QuantizedWeight, RunError, Scheme
from rqat.model.checkpoint import load_checkpoint, load_layers, save_checkpoint
from rqat_kernels.grid import dequantize, fit_minmax, quantize
from tests.tiny import tiny_model, tiny_tokenizer


def round_all(model: PreTrainedModel, scheme: Scheme) -> dict[str, QuantizedWeight]:
    """Rounds every linear layer of the decoder in place."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            weight = module.weight.data
            groups = scheme.groups(weight.shape[1])
            scale, zero = fit_minmax(weight, groups, scheme.max_code, symmetric=scheme.symmetric)
            codes = quantize(weight, scale, zero, scheme.max_code)
            layers[name] = QuantizedWeight(codes, scale, zero.byte(), "a note" if "up_proj" in name else "", scheme)
            weight.copy_(dequantize(codes, scale, zero, weight.dtype))
    return layers


def saved(folder: Path, *, spelling: str = "w2g32", tied: bool = True) -> PreTrainedModel:
    model, scheme = tiny_model(tied=tied), Scheme.parse(spelling)
    layers = round_all(model, scheme)
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder, model, tiny_tokenizer(), layers)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spelling", ["w2g32", "w3g64-sym", "w4-row", "w8g128"])
def test_loading_gives_the_same_weights_to_the_bit(tmp_path: Path, spelling: str, tied: bool) -> None:
    model = saved(tmp_path, spelling=spelling, tied=tied)
    loaded = load_checkpoint(tmp_path)
    assert {layer.scheme for layer in loaded.layers.values()} == {Scheme.parse(spelling)}
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    head, embeddings = loaded.model.get_parameter("lm_head.weight"), loaded.model.get_input_embeddings().weight
    assert (head is embeddings) is tied
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer("12+3")["input_ids"] == tiny_tokenizer()("12+3")["input_ids"]
    assert loaded.layers["model.layers.1.mlp.up_proj"].note == "a note"


def test_generation_settings_come_back(tmp_path: Path) -> None:
    model, scheme = tiny_model(), Scheme.parse("w2g32")
    layers = round_all(model, scheme)
    model.generation_config.update(eos_token_id=[1, 2], temperature=0.6, do_sample=True)
    for folder in (tmp_path / "once", tmp_path / "twice"):
        folder.mkdir()
        save_checkpoint(folder, model, tiny_tokenizer(), layers)
        loaded = load_checkpoint(folder).model
        assert loaded.generation_config.eos_token_id == [1, 2]
        assert loaded.generation_config.temperature == 0.6
        model = loaded


def test_biases_and_trained_tensors_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    scheme = Scheme.parse("w2g32")
    layers = round_all(model, scheme)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias.normal_()
        model.model.norm.weight.normal_()
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.bfloat16())
    save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)
    loaded = load_checkpoint(tmp_path).model
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    stored = {name: tensor.dtype for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert stored["model.norm.weight"] == torch.float32
    assert stored["model.layers.0.self_attn.q_proj.bias"] == torch.float32
    assert stored["model.embed_tokens.weight"] == torch.bfloat16
    assert "lm_head.weight" not in stored
    assert "model.layers.0.self_attn.q_proj.weight" not in stored
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_in_bfloat16_every_weight_is_rounded_once(tmp_path: Path) -> None:
    model = saved(tmp_path)
    loaded = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.dtype == torch.bfloat16
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16()), name
    save_checkpoint(tmp_path, loaded.model, loaded.tokenizer, loaded.layers)
    again = load_checkpoint(tmp_path)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_same_model_is_the_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    loaded = load_checkpoint(tmp_path / "a")
    (tmp_path / "c").mkdir()
    save_checkpoint(tmp_path / "c", loaded.model, loaded.tokenizer, loaded.layers)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"config.json", "model.safetensors", "quantized.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        if name != "tokenizer_config.json":
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes(), name


def test_a_model_off_its_grid_is_not_saved(tmp_path: Path) -> None:
    model, scheme = tiny_model(), Scheme.parse("w2g32")
    layers = round_all(model, scheme)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-6
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj"):
        save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.stat().st_mode & 0o666 == (tmp_path / "a").stat().st_mode & 0o666


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    model, scheme = tiny_model(), Scheme.parse("w2g32")
    layers = round_all(model, scheme)
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "model.safetensors" / "full").touch()
    with pytest.raises((RunError, OSError)):
        save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)


def cut(folder: Path) -> None:
    path = folder / "quantized.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_dense(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def rewrite(change: Callable[[dict[str, torch.Tensor], dict[str, object]], None], name: str) -> Callable[[Path], None]:
    """Writes a file again after `change(tensors, facts)`."""

    def damage(folder: Path) -> None:
        path = folder / name
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["rqat"])
        tensors = load_file(path)
        change(tensors, facts)
        save_file(tensors, path, metadata={"rqat": json.dumps(facts)})

    return damage


LAYER = "model.layers.0.mlp.up_proj"
QUANTIZED, DENSE = "quantized.safetensors", "model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is damaged"),
        (cut_dense, "is damaged"),
        (lambda folder: (folder / QUANTIZED).unlink(), "is not an rqat checkpoint: it has no quantized.safetensors"),
        (lambda folder: (folder / DENSE).unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "is damaged"),
        (rewrite(lambda tensors, facts: tensors.pop(f"{LAYER}.zero"), QUANTIZED), f"{LAYER}.zero is missing"),  # type: ignore[arg-type,return-value]
        (rewrite(lambda tensors, facts: tensors.pop("model.norm.weight"), DENSE), "model.norm.weight is missing"),  # type: ignore[arg-type,return-value]
        (rewrite(lambda tensors, facts: tensors.update(foreign=torch.ones(1)), DENSE), "foreign is unknown"),
        (rewrite(lambda tensors, facts: tensors[f"{LAYER}.codes"].fill_(9), QUANTIZED), f"{LAYER} is not on w2g32"),  # type: ignore[arg-type,return-value]
        (rewrite(lambda tensors, facts: facts.update(scheme="w2g64"), QUANTIZED), "is not on w2g64"),
        (rewrite(lambda tensors, facts: facts.update(scheme="w5g32"), QUANTIZED), "unknown to this version"),
        (rewrite(lambda tensors, facts: facts.update(grid="stretched"), QUANTIZED), "grid 'stretched'"),
        (rewrite(lambda tensors, facts: facts.update(format=2), QUANTIZED), "has checkpoint format 2"),
        (lambda folder: save_file({"a": torch.ones(1)}, folder / QUANTIZED), "was not written by rqat"),
    ],
)  # fmt: skip
def test_damage_is_told(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(tmp_path)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_layers_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    layers = load_layers(tmp_path / QUANTIZED)
    assert str(layers[LAYER].scheme) == "w2g32"
    assert len(layers) == 14
    assert layers[LAYER].codes.shape == (256, 128)
