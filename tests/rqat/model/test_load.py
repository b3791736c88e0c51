"""Loading a model: the right dtype, and nothing that is broken gets through."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rqat import ModelError, NumericsError, RqatError
from rqat.keys import ModelKeys
from rqat.model.load import load_model, open_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_loads_in_float32_on_the_cpu(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    model, tokenizer = load_model(ModelKeys(path=str(folder)), offline=True)
    assert model.dtype == torch.float32
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tiny_model().state_dict()[name]), name
    assert len(tokenizer) == len(tiny_tokenizer())
    assert "Loading" not in capfd.readouterr().err


def test_dtype_can_be_asked_for(folder: Path) -> None:
    assert load_model(ModelKeys(path=str(folder), dtype="bfloat16"))[0].dtype == torch.bfloat16


def change(name: str, value: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        new = value(tensors.pop(name))
        save_file(tensors if new is None else tensors | {name: new}, folder / "model.safetensors", {"format": "pt"})

    return damage


def unknown_activation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "nosuch"}))


NORM, UP = "model.layers.1.self_attn.q_norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (change(UP, lambda t: t.index_fill(0, torch.tensor(3), torch.nan)), NumericsError, f"the tensor {UP} holds"),
        (change(NORM, lambda t: t + torch.inf), NumericsError, f"the tensor {NORM} holds"),
        (change(NORM, lambda t: None), ModelError, f"asks for: {NORM}"),
        (change(UP, lambda t: t[:-1].contiguous()), ModelError, "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ModelError, "The tokenizer of"),
        (unknown_activation, ModelError, "cannot be loaded: transformers finds no 'nosuch'"),
        (lambda f: save_tiny(f, vocab=64), ModelError, "has 32 tokens past the model's vocabulary, which ends at 63"),
    ],
)
@pytest.mark.parametrize("load", [load_model, open_model])
def test_damage_is_told(
    folder: Path,
    damage: Callable[[Path], object],
    error: type[RqatError],
    message: str,
    load: Callable[[ModelKeys], object],
) -> None:
    damage(folder)
    with pytest.raises(error) as caught:
        load(ModelKeys(path=str(folder)))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_model(ModelKeys(path=str(folder)))
