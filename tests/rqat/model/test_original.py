"""What is kept in memory between the steps of a run: the model before quantization, checkpoints, and tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat.keys import ModelKeys
from rqat.model import kept as kept_module
from rqat.model import original as module
from rqat.model.checkpoint import save_checkpoint
from rqat.model.kept import KeptCheckpoints
from rqat.model.load import load_model
from rqat.model.memory import MARGIN, Peak
from rqat.model.original import Original
from rqat.model.tokenizers import tokenizer_in
from tests.tiny import save_tiny


@pytest.fixture
def keys(tmp_path: Path) -> ModelKeys:
    return ModelKeys(path=str(save_tiny(tmp_path / "model")))


def test_readers_get_the_same_model_and_others_a_copy_of_it(keys: ModelKeys) -> None:
    kept = Original()
    kept.make_room(0, "cpu")
    mine, _ = kept.copied(keys, device="cpu")
    with torch.no_grad():
        mine.lm_head.weight.zero_()
    first, tokenizer = kept.get(keys, device="cpu")
    assert kept.get(keys, device="cpu") == (first, tokenizer)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in mine.parameters())
    loaded, _ = load_model(keys)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in first.state_dict().items())
    copy, _ = kept.copied(keys, device="cpu")
    assert torch.equal(copy.lm_head.weight, first.lm_head.weight)
    assert kept.held_bytes == sum(parameter.nbytes for parameter in first.parameters())


def test_it_goes_where_a_step_needs_its_room(keys: ModelKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Original()
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    first, _ = kept.get(keys, device="cpu")
    kept.make_room(int(1000 / MARGIN), "cpu")
    assert kept.get(keys, device="cpu")[0] is first
    kept.make_room(1000, "cpu")
    assert kept.held_bytes == 0
    kept.copied(keys, device="cpu")
    assert kept.held_bytes == 0, "there is no room for two"
    assert kept.get(keys, device="cpu")[0] is not first


def test_a_tokenizer_is_read_once_as_long_as_nobody_changes_it(tmp_path: Path) -> None:
    one, same, other = (save_tiny(tmp_path / name) for name in ("one", "same", "other"))
    first = tokenizer_in(one)
    assert tokenizer_in(same) is first
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"version"', ' "version"'))
    assert tokenizer_in(other) is not first
    first.padding_side = "left" if first.padding_side == "right" else "right"
    assert tokenizer_in(one) is not first


def test_the_peak_counts_from_its_beginning() -> None:
    before = Peak("cpu")
    torch.ones(1 << 26).sum()
    after = Peak("cpu")
    if before.bytes is None or after.bytes is None:
        pytest.skip("the system does not say")
    assert before.bytes == after.bytes, "both read the same counter, which the second has set back"
    most = after.bytes
    torch.ones(1 << 27).sum()
    assert most + (1 << 28) < after.bytes


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """Folders of two checkpoints."""
    model, tokenizer = load_model(ModelKeys(path=str(save_tiny(tmp_path / "model"))))
    folders = [tmp_path / name for name in ("02-quantize-rtn", "03-train-kd")]
    for folder in folders:
        folder.mkdir()
        save_checkpoint(folder, model, tokenizer, {})
    return folders


def test_a_checkpoint_is_kept_while_steps_behind_read_it(steps: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = steps
    where = {"device": "cpu", "dtype": torch.float32}
    kept = KeptCheckpoints()
    kept.make_room(0, "cpu", now=[one], later=[one, other])
    first = kept.get(one, **where)
    size = kept.beside_bytes()
    assert size == sum(parameter.nbytes for parameter in first.model.parameters())
    assert kept.beside_bytes(now=[one]) == 0
    kept.make_room(0, "cpu", now=[other], later=[one])
    kept.get(other, **where)
    assert kept.beside_bytes(now=[one]) == 0, "nobody asks for the other again"
    kept.make_room(0, "cpu", now=[one])
    assert kept.get(one, **where) is first
    assert kept.get(one, device="cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    kept.make_room(0, "cpu", now=[other], later=[other])
    assert kept.beside_bytes() == 0
    assert kept.get(one, **where) is not first
    second = kept.get(other, **where)
    monkeypatch.setattr(kept_module, "available_bytes", lambda device: 1000)
    kept.make_room(1000, "cpu", now=[other], later=[other])
    assert kept.beside_bytes() == 0, "there is no room for it beside the step"
    kept.make_room(int(1000 / MARGIN), "cpu", now=[other], later=[other])
    assert kept.get(other, **where) is not second
    assert kept.beside_bytes() == 0, "what is free is for the step"
