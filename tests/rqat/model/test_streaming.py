"""A model that is read block by block becomes, to the byte, what one in memory becomes, and never is there whole."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rqat import Block, LinearStats, QuantizedWeight, Quantizer, Schemes
from rqat.errors import ModelError, RunError
from rqat.keys import ModelKeys
from rqat.model import finished
from rqat.model.activations import TokenBatch
from rqat.model.blocks import quantize_model
from rqat.model.checkpoint import keep_generation_settings, save_checkpoint
from rqat.model.finished import write_finished
from rqat.model.load import load_model, open_model
from rqat.storage import read_json
from rqat_awq import Options as AwqOptions
from rqat_awq.solver import Awq
from rqat_block_ap import Options as BlockApOptions
from rqat_block_ap.solver import BlockAp
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest
from tests.tiny import save_tiny

QUANTIZERS = {
    "rtn": lambda: RoundToNearest(RtnOptions()),
    "gptq": lambda: Gptq(GptqOptions()),
    "gptq in turn": lambda: Gptq(GptqOptions(true_sequential=True)),
    "gptaq": lambda: Gptq(GptqOptions(asymmetric=0.25)),
    "awq": lambda: Awq(AwqOptions(grid=3)),
    "block-ap": lambda: BlockAp(BlockApOptions(start="rtn", epochs=1, held_out=4)),
}
BLOCKS: dict[str, str] = {"default": "w2g32"}
TIED = {**BLOCKS, "lm_head": "w4g64"}
UNTIED = {**TIED, "embed_tokens": "w8g64"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The folders of a model whose head is tied to its embedding (true), and of one that is not."""
    folder = tmp_path_factory.mktemp("sources")
    return {tied: save_tiny(folder / str(tied), layers=3, hidden=64, tied=tied) for tied in (True, False)}


def tokens() -> list[TokenBatch]:
    """Two batches of one shape and one that is shorter."""
    ids = torch.randint(3, 96, (5, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[1, 15:] = False
    return [TokenBatch(ids[:2]), TokenBatch(ids[2:4], mask), TokenBatch(ids[4:, :16])]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def in_memory(source: Path, folder: Path, quantizer: Quantizer, schemes: Schemes, skip: tuple[str, ...]) -> Path:
    model, tokenizer = load_model(ModelKeys(path=str(source)))
    layers, _ = quantize_model(model, tokens(), quantizer, schemes, skip=skip)
    folder.mkdir()
    save_checkpoint(folder, model, tokenizer, layers)
    keep_generation_settings(source, folder)
    return folder


def streamed(source: Path, folder: Path, quantizer: Quantizer, schemes: Schemes, skip: tuple[str, ...]) -> Path:
    weights, tokenizer = open_model(ModelKeys(path=str(source)))
    kept = folder / ".resume"
    kept.mkdir(parents=True, exist_ok=True)
    layers, _ = quantize_model(weights, tokens(), quantizer, schemes, skip=skip, resume_dir=kept)
    assert all(parameter.is_meta for name, parameter in weights.model.named_parameters() if name != "model.norm.weight")
    write_finished(folder, weights, tokenizer, layers, kept)
    keep_generation_settings(source, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "spelled", "skip"),
    [
        ("rtn", UNTIED, ()),
        ("gptq", TIED, ("model.layers.1.*",)),
        ("gptq in turn", UNTIED, ()),
        ("gptaq", UNTIED, ("*.up_proj",)),
        ("awq", BLOCKS, ()),
        ("block-ap", TIED, ()),
    ],
)
def test_it_becomes_what_a_model_in_memory_becomes(
    tmp_path: Path, sources: dict[bool, Path], name: str, spelled: dict[str, str], skip: tuple[str, ...]
) -> None:
    source, schemes = sources[spelled is not UNTIED], Schemes.parse(spelled)
    expected = in_memory(source, tmp_path / "a", QUANTIZERS[name](), schemes, skip)
    found = streamed(source, tmp_path / "b", QUANTIZERS[name](), schemes, skip)
    assert files_of(found) == files_of(expected)


def test_both_files_are_written_at_once(
    tmp_path: Path, sources: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what stands in the way of the layers', one hears; and what an ended process has left is swept before."""
    begun, write_layers, write_dense = threading.Event(), finished.write_layers, finished.write_dense

    def layers(*given: Any) -> None:
        begun.set()
        write_layers(*given)

    def dense(*given: Any) -> None:
        assert begun.wait(60)
        write_dense(*given)

    def full(*given: Any) -> None:
        raise RunError("the disk is full", hint="")

    monkeypatch.setattr(finished, "write_layers", layers)
    monkeypatch.setattr(finished, "write_dense", dense)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".model.safetensors.17.tmp").touch()
    found = streamed(sources[True], tmp_path / "a", QUANTIZERS["rtn"](), Schemes.parse(BLOCKS), ())
    assert not [*found.glob(".*.tmp")]
    monkeypatch.setattr(finished, "write_dense", write_dense)
    monkeypatch.setattr(finished, "write_layers", full)
    with pytest.raises(RunError, match="the disk is full"):
        streamed(sources[True], tmp_path / "b", QUANTIZERS["rtn"](), Schemes.parse(BLOCKS), ())


class Watching(Quantizer):
    """Does what another does; notes which decoder layers are there, and stops for good at the one it is told."""

    def __init__(self, inner: Quantizer, model: torch.nn.Module, die_at: str = "") -> None:
        super().__init__(None)
        self.inner, self.model, self.die_at, self.there = inner, model, die_at, list[set[str]]()
        self.needs, self.tied_ends, self.in_turn = inner.needs, inner.tied_ends, inner.in_turn  # type: ignore[misc]

    def quantize_linear(self, weight: torch.Tensor, stats: LinearStats, scheme: object) -> QuantizedWeight:
        raise NotImplementedError

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        if block.name == self.die_at:
            raise KeyboardInterrupt
        weights = {name.rpartition(".mlp")[0] for name, own in self.model.named_parameters() if not own.is_meta}
        self.there.append(weights - {""})
        return self.inner.quantize_block(block, stats)


@pytest.mark.parametrize("name", ["rtn", "gptq", "gptaq"])
def test_one_block_is_there_while_it_is_worked_on(tmp_path: Path, sources: dict[bool, Path], name: str) -> None:
    weights, _ = open_model(ModelKeys(path=str(sources[True])))
    watching = Watching(QUANTIZERS[name](), weights.model)
    quantize_model(weights, tokens(), watching, Schemes.parse(BLOCKS), resume_dir=tmp_path)
    assert watching.there == [{f"model.layers.{block}"} for block in range(3)]


@pytest.mark.parametrize(("name", "spelled"), [("gptq", TIED), ("gptaq", UNTIED)])
def test_an_interrupted_walk_ends_in_the_same_bytes(
    tmp_path: Path, sources: dict[bool, Path], name: str, spelled: dict[str, str]
) -> None:
    source, schemes = sources[spelled is not UNTIED], Schemes.parse(spelled)
    expected = streamed(source, tmp_path / "a", QUANTIZERS[name](), schemes, ())
    weights, _ = open_model(ModelKeys(path=str(source)))
    kept = tmp_path / "b" / ".resume"
    kept.mkdir(parents=True)
    dying = Watching(QUANTIZERS[name](), weights.model, die_at="model.layers.2")
    with pytest.raises(KeyboardInterrupt):
        quantize_model(weights, tokens(), dying, schemes, resume_dir=kept)
    assert (kept / "model.layers.1.safetensors").is_file()
    assert files_of(streamed(source, tmp_path / "b", QUANTIZERS[name](), schemes, ())) == files_of(expected)


def test_a_tied_head_may_be_stored_as_well_but_not_with_other_values(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", layers=1, hidden=64)
    arguments = (QUANTIZERS["rtn"](), Schemes.parse("w2g32"), ())

    def store(factor: int) -> None:
        stored = load_file(source / "model.safetensors")
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"] * factor
        save_file(stored, source / "model.safetensors", {"format": "pt"})

    store(1)
    found = streamed(source, tmp_path / "b", *arguments)
    assert files_of(found) == files_of(in_memory(source, tmp_path / "a", *arguments))
    assert "lm_head.weight" not in load_file(found / "model.safetensors")
    store(2)
    for quantized in (in_memory, streamed):
        with pytest.raises(ModelError, match="readers disagree on which of the two counts"):
            quantized(source, tmp_path / quantized.__name__, *arguments)


def test_to_ask_which_layers_are_finished_reads_none_of_them(tmp_path: Path) -> None:
    weights, _ = open_model(ModelKeys(path=str(save_tiny(tmp_path / "source", layers=1, hidden=64))))
    layers, _ = quantize_model(weights, [], QUANTIZERS["rtn"](), Schemes.parse("w2g32"), resume_dir=tmp_path)
    (tmp_path / "model.layers.0.safetensors").unlink()
    assert "model.layers.0.mlp.up_proj" in layers
    assert "lm_head" not in layers
    with pytest.raises(FileNotFoundError):
        _ = layers["model.layers.0.mlp.up_proj"]


def test_values_that_bfloat16_does_not_hold_are_kept(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", layers=1, hidden=64)
    stored = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    stored["model.embed_tokens.weight"] += 1e-5
    stored["model.layers.0.input_layernorm.weight"] += 1e-5
    save_file(stored, source / "model.safetensors", {"format": "pt"})
    arguments = (QUANTIZERS["gptq"](), Schemes.parse("w2g32"), ("*.up_proj",))
    found = streamed(source, tmp_path / "b", *arguments)
    assert files_of(found) == files_of(in_memory(source, tmp_path / "a", *arguments))
    kept = load_file(found / "model.safetensors")
    assert [name for name, tensor in kept.items() if tensor.dtype == torch.float32] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
    ]


NARROW = "from rqat.model import hf_folder; hf_folder.HELD = 1 << 24; from rqat.cli.app import main; main()"
"""`python -m rqat` that keeps fewer of a shard's tensors in memory than even these models have."""


@pytest.mark.long
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_peak_does_not_depend_on_the_number_of_blocks(tmp_path: Path, method: str) -> None:
    """Of quantizing, and of export with its checks: ten blocks more would be 380 MB in float32."""
    peaks: list[dict[str, int]] = []
    for layers in (16, 26):  # above what is checked as a whole
        source = save_tiny(tmp_path / f"{layers}", layers=layers, hidden=1024)
        recipe, run = tmp_path / f"{layers}.yaml", tmp_path / f"run-{layers}"
        data = "calibration: {source: arith, samples: 16, tokens: 128}\n" if method == "gptq" else ""
        recipe.write_text(f"name: peaks\nmodel: {source}\nscheme: w4g128\nquantize: {method}\ntrain: []\n{data}")
        # A process of its own for each, so that nobody has left it memory.
        subprocess.run([sys.executable, "-c", NARROW, "qat", str(recipe), "-o", str(run)], check=True)
        found = {path.parent.name: read_json(path) for path in sorted(run.glob("*/manifest.json"))}
        peaks.append({manifest["stage"]: manifest["memory"]["peak_bytes"] for manifest in found.values()})
    assert peaks[0].keys() == peaks[1].keys() >= {"quantize", "export"}
    for stage in ("quantize", "export"):
        few, many = (peak[stage] for peak in peaks)
        # What the C library does with freed pieces moves the peak of GPTQ by some 3 percent either way.
        assert abs(many - few) < (0.1 if method == "gptq" else 0.05) * few, (stage, few, many)
