"""Transforms: a rotated model computes the same, and hooks survive saving, loading and evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rqat.contracts import Transform
from rqat.errors import NumericsError, PluginError
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.model.transforms import Applied, apply_transforms, load_transforms
from rqat.registry import Registry
from rqat.scheme import Scheme
from rqat.testing.tiny import rounded
from tests.tiny import tiny_model, tiny_tokenizer

PLUGIN = Path(__file__).parents[2] / "third_party" / "acme_rotation.py"
TOKENS = torch.arange(48).view(2, 24) % 90 + 3


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("RQAT_PLUGINS", str(PLUGIN))
    yield Registry.discover()
    sys.modules.pop("acme_rotation", None)
    monkeypatch.delenv("RQAT_PLUGINS")
    Registry.discover()


def chosen(registry: Registry, *names: str) -> list[tuple[str, dict, Transform]]:
    cards = [registry.card("transform", name) for name in names]
    return [(card.full_name, {}, registry.make(card, card.options())) for card in cards]


def test_a_rotated_model_computes_the_same(registry: Registry) -> None:
    model = tiny_model()
    before = model(TOKENS).logits
    weight = model.model.layers[0].mlp.up_proj.weight.clone()
    apply_transforms(model, chosen(registry, "acme-rotate"))
    assert not torch.allclose(model.model.layers[0].mlp.up_proj.weight, weight)
    assert not model.config.tie_word_embeddings
    assert (model(TOKENS).logits - before).abs().max() < 1e-4


def quantized(model: torch.nn.Module) -> dict:
    scheme = Scheme.parse("w4g32")
    names = [name for name, module in model.named_modules() if name.endswith("_proj")]
    layers = {name: rounded(model.get_parameter(f"{name}.weight").detach(), scheme) for name in names}
    with torch.no_grad():
        for name, layer in layers.items():
            model.get_parameter(f"{name}.weight").copy_(decoded(layer))
    return layers


def decoded(layer) -> torch.Tensor:
    from rqat_kernels.grid import dequantize

    return dequantize(layer.codes, layer.scale, layer.zero)


def test_hooks_survive_saving_and_loading(registry: Registry, tmp_path: Path) -> None:
    model = tiny_model()
    applied = apply_transforms(model, chosen(registry, "acme-rotate", "acme-int8"))
    layers = quantized(model)
    with_hooks = model(TOKENS).logits
    save_checkpoint(tmp_path, model, tiny_tokenizer(), layers, applied)
    loaded = load_checkpoint(tmp_path)
    assert [one.name for one in loaded.transforms] == ["acme_rotation:acme-rotate", "acme_rotation:acme-int8"]
    assert [one.hooked(registry) for one in loaded.transforms] == [False, True]
    assert loaded.model(TOKENS).logits.equal(with_hooks)
    for module in loaded.model.modules():
        module._forward_pre_hooks.clear()
    assert not loaded.model(TOKENS).logits.equal(with_hooks)


def test_a_checkpoint_without_transforms_has_no_such_file(tmp_path: Path) -> None:
    model = tiny_model()
    save_checkpoint(tmp_path, model, tiny_tokenizer(), quantized(model))
    assert load_transforms(tmp_path) == []
    assert not (tmp_path / "transforms.safetensors").exists()


class Breaks(Transform):
    def apply(self, model):
        model.get_input_embeddings().weight.fill_(float("nan"))


class ReturnsNumbers(Transform):
    def apply(self, model):
        return {"count": 3}


def test_what_a_transform_may_not_do() -> None:
    with pytest.raises(NumericsError, match=r"'breaks' left values that are not finite in model\.embed_tokens"):
        apply_transforms(tiny_model(), [("breaks", {}, Breaks(None))])
    with pytest.raises(PluginError, match="apply returned count, which is no tensor"):
        apply_transforms(tiny_model(), [("numbers", {}, ReturnsNumbers(None))])


def test_a_missing_plugin_is_named(tmp_path: Path) -> None:
    from rqat.errors import UnknownName

    with pytest.raises(UnknownName, match="'gone' is not a transform"):
        Applied("gone", {}).make(Registry.discover())
