"""A format that is one file and not safetensors is an exporter: what another library reads from it are our weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat import Context, ModelError, Scheme
from rqat.contracts import ModelShape
from rqat.job import Silence
from rqat.model.checkpoint import load_checkpoint
from rqat.registry import Registry
from rqat.stages.export.run import export_checkpoint
from rqat.testing.doctor import examine
from tests.plugin_maker import write_metadata
from tests.rqat.model.test_checkpoint import saved

gguf = pytest.importorskip("gguf")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """With the plugin installed."""
    site = tmp_path / "site"
    site.mkdir()
    write_metadata(site, "rqat-acme-gguf", "rqat_acme_gguf")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return Registry.discover()


def export(registry: Registry, start: Path, folder: Path, **options: str) -> dict:
    card = registry.card("exporter", "acme-gguf")
    exporter = registry.make(card, registry.options(card, options))
    return export_checkpoint(start, folder, exporter, card, base="a/b", device="cpu", progress=Silence())


@pytest.mark.parametrize("spelling", ["w2g32", "w3g64", "w3g32-sym", "w2-row"])
def test_reading_the_file_gives_the_weights_of_the_model(tmp_path: Path, registry: Registry, spelling: str) -> None:
    saved(tmp_path, spelling=spelling)
    facts = export(registry, tmp_path, tmp_path / "out", name="tiny")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "tiny.gguf"]
    assert facts["bytes"] == (tmp_path / "out" / "tiny.gguf").stat().st_size
    assert facts["decoded"] == "not checked: exporter 'acme-gguf' has no decode"
    assert facts["reload"] == "not checked: transformers does not load this format"
    found = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(tmp_path / "out" / "tiny.gguf").tensors
    }
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, 2)
    model = load_checkpoint(tmp_path).model
    expected = {f"{names.get_name(name.removesuffix('.weight'))}.weight": p for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(torch.tensor(found[name]), weight.detach()), name


def test_what_it_cannot_hold_is_told_before_any_work(tmp_path: Path, registry: Registry) -> None:
    card = registry.card("exporter", "acme-gguf")
    shape = ModelShape("m", "qwen3", {"a": (64, 64)}, 64, 8, 1, True, None)

    def problems(spelling: str) -> list[str]:
        context = Context(schemes={"a": Scheme.parse(spelling)}, model=shape)
        return [problem.text for problem in registry.options(card, {}).check(context)]

    assert problems("w2g32") == problems("w3-row") == []
    assert problems("w4g32") == ["Q4_0 does not hold w4g32."]
    assert problems("w2g16") == ["Q4_0 does not hold w2g16."]
    saved(tmp_path, spelling="w2g16")
    with pytest.raises(ModelError, match="Q4_0 does not hold w2g16"):
        export(registry, tmp_path, tmp_path / "out")


def test_doctor_finds_nothing(registry: Registry) -> None:
    results = list(examine(registry, registry.card("exporter", "acme-gguf")))
    assert [result for result in results if result.error] == []
