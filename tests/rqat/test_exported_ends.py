"""A model whose two ends are quantized, exported in every format and opened in every way: the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import rqat
from rqat import ModelError, NumericsError, grid_of
from rqat.cli.app import build
from rqat.generation.backend import Backend, open_model
from rqat.generation.engine import Engine
from rqat.keys import ModelKeys
from rqat.model.checkpoint import load_checkpoint
from rqat.model.exported import check_logits
from rqat.model.native import load_native
from rqat.model.reader import CheckpointReader
from rqat.packed.load import load_packed
from rqat.registry import Registry
from rqat_kernels.packed_linear import PackedLinear
from tests.tiny import save_tiny

BITS = (4, 8)
Made = tuple[Path, Path]


def schemes(bits: int, *, tied: bool) -> dict[str, str]:
    """Of the layers between 2 bits; the ends of an untied model differ in their groups."""
    return {"default": "w2g32", "lm_head": f"w{bits}g64", "embed_tokens": f"w{bits}g{64 if tied else 32}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """`made(tied, bits, format)`: the step of a run, and what was exported of it; each made once."""
    root = tmp_path_factory.mktemp("made")
    steps: dict[tuple[bool, int], Path] = {}
    exports: dict[tuple[bool, int, str], Path] = {}

    def make(tied: bool, bits: int = 4, format_name: str = "rqat") -> Made:
        if (tied, bits) not in steps:
            source = save_tiny(root / f"source-{tied}", tied=tied)
            quantized = rqat.quantize(source, method="rtn", scheme=schemes(bits, tied=tied), device="cpu")
            steps[tied, bits] = rqat.save(quantized, root / f"step-{tied}-{bits}")
        key = (tied, bits, format_name)
        if key not in exports:
            folder = root / "-".join(map(str, key))
            facts = rqat.export(steps[tied, bits], folder, format_name, device="cpu")
            (root / f"{folder.name}.json").write_text(json.dumps(facts))
            exports[key] = folder
        return steps[tied, bits], exports[key]

    return make


def facts_of(folder: Path) -> Any:
    return json.loads((folder.parent / f"{folder.name}.json").read_text())


def opened(folder: Path, backend: Backend = "auto") -> Any:
    """The model in a folder and its tokenizer."""
    return open_model(ModelKeys(path=str(folder)), device="cpu", offline=True, backend=backend)


def tokens() -> torch.Tensor:
    return torch.randint(95, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bits", BITS)
def test_our_own_format_holds_every_weight_at_its_bits(made: Any, tied: bool, bits: int) -> None:
    step, folder = made(tied, bits)
    before, after = load_checkpoint(step), load_native(folder)
    assert list(after.layers) == list(before.layers)
    assert all(layer.equals(before.layers[name]) for name, layer in after.layers.items())
    assert before.model.state_dict().keys() == after.model.state_dict().keys()
    for name, tensor in after.model.state_dict().items():
        assert torch.equal(tensor, before.model.state_dict()[name]), name
    stored = load_file(folder / "model.safetensors")
    assert "model.embed_tokens.weight" not in stored
    assert ("lm_head.codes" in stored) is not tied
    embedding = sum(tensor.nbytes for name, tensor in stored.items() if name.startswith("model.embed_tokens."))
    groups = 128 // (64 if tied else 32)
    assert embedding == 128 * (128 * bits // 8 + 2 * groups) + 128 * groups * bits // 8 + 16
    facts = facts_of(folder)
    assert (facts["max_abs_diff"], facts["reload"]) == (0.0, "every tensor equal, bit by bit")
    assert facts["decoded"] == "every layer equal, bit by bit"
    assert facts["left_as_they_were"] == facts["in_16_bits"] == []
    parameters = sum(parameter.numel() for parameter in after.model.parameters())
    assert facts["bits_per_parameter"] == round(8 * facts["bytes"] / parameters, 4)
    card = (folder / "README.md").read_text()
    assert f"{facts['bits_per_parameter']:.2f} bits per parameter in all" in card
    assert "Left as they were: the norms.\n" in card


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("bits", BITS)
def test_every_backend_computes_the_same(made: Any, tied: bool, bits: int) -> None:
    step, folder = made(tied, bits)
    expected = load_checkpoint(step).model(tokens()).logits
    backends: tuple[Backend, ...] = ("auto", "transformers", "packed")
    for backend in backends:
        model, tokenizer = opened(folder, backend)
        assert torch.equal(model(tokens()).logits, expected), backend
        assert len(tokenizer) == 96
    assert torch.equal(load_packed(step)[0](tokens()).logits, expected)
    packed, _ = load_packed(folder)
    assert isinstance(packed.lm_head, PackedLinear) is (bits == 4)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 14 + (bits == 4)
    assert isinstance(packed.get_input_embeddings().weight, torch.nn.Parameter)
    Engine(packed)  # which reads the embedding and calls the head


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_generate_and_eval_say_the_same_with_every_backend(made: Any, tied: bool, tmp_path: Path) -> None:
    _, folder = made(tied)
    answers, scores = [], []
    for backend in ("auto", "transformers", "packed"):
        answers.append(run("generate", folder, "1+2=", "--max-new-tokens", 12, "--backend", backend).stdout)
        found = tmp_path / backend
        run("eval", "arith", folder, "--limit", 3, "--set", "max_new_tokens=8", "--backend", backend, "-o", found)
        scores.append((found / "samples.jsonl").read_text())
    assert answers[0] == answers[1] == answers[2] != ""
    assert scores[0] == scores[1] == scores[2]


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(build(), list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_formats_of_servers_hold_the_embedding_in_16_bits(made: Any, tied: bool) -> None:
    step, folder = made(tied, 4, "compressed-tensors")
    stored = load_file(folder / "model.safetensors")
    layer = load_checkpoint(step).layers["model.embed_tokens"]
    assert layer.scheme is not None
    exact = grid_of(layer.scheme).decode_layer(layer)
    assert torch.equal(stored["model.embed_tokens.weight"], exact.to(torch.bfloat16))
    assert ("lm_head.weight_packed" in stored) is not tied
    facts = facts_of(folder)
    assert facts["max_abs_diff"] == 0.0, "compared with the embedding as it was rounded"
    assert facts["in_16_bits"] == ["model.embed_tokens"]
    assert "stored in 16 bits: `model.embed_tokens`" in (folder / "README.md").read_text()
    packed, _ = load_packed(folder)
    expected, _ = opened(folder)
    assert torch.equal(packed(tokens()).logits, expected(tokens()).logits)
    assert isinstance(packed.lm_head, PackedLinear) is not tied


def test_block_by_block_a_quantized_head_counts_as_well(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rqat.model.exported.SMALL", 0)
    step, folder = made(False)[0], tmp_path / "out"
    facts = rqat.export(step, folder, "compressed-tensors", device="cpu")
    assert facts["reload"].endswith("1 of 2 blocks")
    assert facts["max_abs_diff"] == 0.0
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight_scale"] = tensors["lm_head.weight_scale"] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    registry = Registry.current()
    exporter = registry.make(card := registry.card("exporter", "compressed-tensors"), registry.options(card, {}))
    reader = CheckpointReader(step, unpacked=("model.embed_tokens",))
    with pytest.raises(NumericsError, match="its hidden states differ"):
        check_logits(folder, exporter, reader, "cpu", hint="")


def test_the_gptq_format_takes_a_tied_pair_too(made: Any) -> None:
    _, folder = made(True, 4, "gptq")
    packed, _ = load_packed(folder)
    expected, _ = opened(made(True, 4, "compressed-tensors")[1])
    assert torch.equal(packed(tokens()).logits, expected(tokens()).logits)


def test_any_grid_is_held_and_its_fixed_zero_points_take_no_room(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    mixed = {"default": "w2g32-seq", "*.down_proj": "w3g32-sym", "lm_head": "w2g64-seq"}
    quantized = rqat.quantize(source, method="rtn", scheme=mixed, device="cpu")
    rqat.export(quantized, tmp_path / "out", "rqat")
    found = load_native(tmp_path / "out")
    assert all(layer.equals(quantized.layers[name]) for name, layer in found.layers.items())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.numel() for name, tensor in stored.items() if name.endswith(".zero")} == {1}
    with pytest.raises(ModelError, match="is on the grid 'seq'; packed weights are uniform"):
        load_packed(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(version=2), "has version 2 of the format rqat; this rqat reads 1"),
        (lambda raw: raw["layers"].update({"model.layers.7.mlp.up_proj": "w2g32"}), "is damaged"),
        (lambda raw: raw["layers"].update({"model.embed_tokens": "w5g64"}), "is damaged"),
        (lambda raw: raw.pop("layers"), "is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(made: Any, tmp_path: Path, change: Any, says: str) -> None:
    _, folder = made(True)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    change(raw["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for load in (load_native, load_packed):
        with pytest.raises(ModelError) as found:
            load(tmp_path)
        assert says in found.value.message
        assert "\n" not in found.value.message
        assert found.value.hint


@pytest.mark.parametrize("what", ["a tensor", "a scheme", "one too few"])
def test_our_own_format_is_compared_tensor_by_tensor(made: Any, tmp_path: Path, what: str) -> None:
    step, exported = made(True)
    folder = Path(shutil.copytree(exported, tmp_path / "changed"))
    exporter: Any = None
    assert check_logits(folder, exporter, CheckpointReader(step), "cpu", hint="")["max_abs_diff"] == 0.0
    if what == "a scheme":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["layers"]["model.embed_tokens"] = "w8g64"
        (folder / "config.json").write_text(json.dumps(config))
    else:
        tensors = load_file(folder / "model.safetensors")
        if what == "a tensor":
            tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
        else:
            del tensors["model.norm.weight"]
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NumericsError, match="embed_tokens" if what == "a scheme" else "model.norm.weight"):
        check_logits(folder, exporter, CheckpointReader(step), "cpu", hint="")
