"""The quantize stage: a checkpoint and its report, and the same bytes after an interruption."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rqat import LinearStats, QuantizedWeight, Quantizer, Scheme
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.checkpoint import load_checkpoint
from rqat.stage import Step
from rqat.stages.quantize import QuantizeKeys
from rqat.stages.quantize import run as quantize
from rqat_kernels import grid
from tests.tiny import save_tiny, tiny_model

SCHEME = Scheme.parse("w2g32")


class Clipping(Quantizer):
    """Rounds with a clip search that weighs inputs by their mean square; dies at its `die_at`-th layer."""

    needs = frozenset({"hessian"})

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__(None)
        self.left = die_at
        self.layers = 0

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
        if self.left is not None and self.layers == self.left:
            raise KeyboardInterrupt
        self.layers += 1
        assert stats.hessian is not None
        groups = scheme.groups(weight.shape[1])
        importance = stats.hessian.diagonal()
        scale, zero = grid.fit_clip(weight, groups, scheme.max_code, symmetric=False, importance=importance)
        codes = grid.quantize(weight, scale, zero, scheme.max_code)
        return QuantizedWeight(codes, scale, zero.to(torch.uint8), "a note" if weight.shape[1] == 256 else "")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", layers=3)


def run(folder: Path, model: Path, quantizer: Quantizer, **settings: Any) -> tuple[dict[str, Any], Path]:
    folder.mkdir(exist_ok=True)
    registry = SimpleNamespace(make=lambda card, options: quantizer)
    plan = SimpleNamespace(model=ModelKeys(path=str(model)), scheme=SCHEME)
    use = SimpleNamespace(card=None, options=None)
    keys = QuantizeKeys(method="clipping", **settings)
    step = Step("02-quantize", "quantize", "clipping", keys, {"quantizer": use}, {"calibration": "01-calibrate"})  # type: ignore[dict-item]
    job = Job(plan, folder, registry, offline=True)  # type: ignore[arg-type]
    job.workdir(step).mkdir(exist_ok=True)
    calibration = job.result_of("01-calibrate")
    if not calibration.exists():
        calibration.mkdir()
        ids = torch.randint(3, 96, (6, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
        mask = torch.ones(6, 40, dtype=torch.uint8)
        mask[4, 30:] = 0
        save_file({"input_ids": ids, "attention_mask": mask}, calibration / "calibration.safetensors")
    return quantize.run(job, step), job.workdir(step)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_writes_a_checkpoint_and_a_report(tmp_path: Path, model: Path) -> None:
    facts, folder = run(tmp_path, model, Clipping())
    loaded = load_checkpoint(folder)
    assert {layer.scheme for layer in loaded.layers.values()} == {SCHEME}
    original = tiny_model(layers=3)
    for name, tensor in loaded.model.state_dict().items():
        layer = loaded.layers.get(name.removesuffix(".weight"))
        expected = original.state_dict()[name]
        if layer is not None:
            expected = grid.dequantize(layer.codes, layer.scale, layer.zero)
        assert torch.equal(tensor, expected), name
    report = json.loads((folder / "layers.json").read_text())
    assert [entry["name"] for entry in report] == list(loaded.layers)
    assert all(0 < entry["error"] < 1 for entry in report)
    assert (facts["layers"], facts["left"], facts["bits_per_weight"]) == (21, 0, 2.5625)
    assert facts["notes"] == {f"model.layers.{block}.mlp.down_proj": "a note" for block in range(3)}
    assert facts["worst"]["error"] == max(entry["error"] for entry in report)


def test_skipped_layers_are_counted(tmp_path: Path, model: Path) -> None:
    facts, folder = run(tmp_path, model, Clipping(), skip=("*.down_proj",))
    assert (facts["layers"], facts["left"]) == (18, 3)
    assert len(load_checkpoint(folder).layers) == 18


def test_an_interrupted_stage_ends_in_the_same_bytes(tmp_path: Path, model: Path) -> None:
    _, unbroken = run(tmp_path / "a", model, Clipping())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", model, Clipping(die_at=10))
    second = Clipping()
    _, resumed = run(tmp_path / "b", model, second)
    assert second.layers == 14  # the first block was kept
    assert files_of(resumed) == files_of(unbroken)


def test_batches_hold_no_padding_that_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantize.TOKENS_AT_ONCE, "cpu", 20)
    ids = torch.arange(50, dtype=torch.int32).view(5, 10)
    mask = (torch.arange(10)[None] < torch.tensor([10, 10, 4, 7, 2])[:, None]).to(torch.uint8)
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "calibration.safetensors")
    full, padded, last = quantize.token_batches(tmp_path / "calibration.safetensors", "cpu")
    assert full.input_ids.shape == (2, 10)
    assert full.attention_mask is None
    assert padded.input_ids.shape == (2, 7)
    assert padded.attention_mask is not None
    assert padded.attention_mask.sum(1).tolist() == [4, 7]
    assert last.input_ids.tolist() == [[40, 41]]
    assert last.attention_mask is None
