"""Checkpoints of interrupted training: only whole ones count, at every moment; they hold what they were given."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from rqat.errors import RunError
from rqat.processes import Processes
from rqat.train import checkpoints
from rqat.train.checkpoints import (
    STATE,
    Snapshot,
    check_kinds,
    last_complete,
    processes_of,
    put_together,
    read_checkpoint,
    step_of,
    taken_apart,
    write_checkpoint,
)
from rqat.train.random_states import random_state, set_random_state
from rqat.train.saving import Saving


def snapshot(step: int) -> Snapshot:
    tensors = {"a/latent": torch.full((3, 4), float(step)), "a/moment": torch.ones(2).bfloat16(), "n": torch.tensor(7)}
    return Snapshot(step, tensors, {"step": step, "random": [{}, {}]}, {"global_step": step})


def test_what_is_written_is_read_and_the_one_before_goes(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "missing") is None
    assert processes_of(write_checkpoint(tmp_path, snapshot(9))) == 2
    written = write_checkpoint(tmp_path, snapshot(10))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert last_complete(tmp_path) == written
    assert step_of(written) == 10
    tensors, state = read_checkpoint(written)
    assert state["step"] == 10
    expected = snapshot(10).tensors
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_large_ones_are_split_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FILE_BYTES", 40)
    written = write_checkpoint(tmp_path, snapshot(1))
    files = sorted(written.glob("*.safetensors"))
    assert len(files) == 2
    assert torch.equal(read_checkpoint(written)[0]["a/latent"], torch.ones(3, 4))
    files[1].unlink()
    with pytest.raises(RunError, match="tensors are there"):
        read_checkpoint(written)


def test_the_rest_of_an_attempt_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_checkpoint(tmp_path, snapshot(3))

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "sync_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, snapshot(4))
    assert (tmp_path / "checkpoint-4.partial").is_dir()
    assert last_complete(tmp_path) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_killed_while_the_one_before_is_removed_it_is_not_found_gutted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, snapshot(3))

    def killed(folder: Path, **_: object) -> None:
        if folder.is_dir():
            (folder / STATE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, snapshot(4))
    assert last_complete(tmp_path) == tmp_path / "checkpoint-4"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_nested_state_comes_back_as_it_was() -> None:
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"betas": (0.9, 0.95), "lr": 0.1, "fused": None}]}
    tensors: dict[str, torch.Tensor] = {}
    apart = json.loads(json.dumps(taken_apart(state, tensors, "optimizer")))
    assert list(tensors) == ["optimizer/state/0/step"]
    assert put_together(apart, tensors) == state


def test_random_states_come_back_as_they_were() -> None:
    random.gauss(0, 1)  # leaves a spare
    state = json.loads(json.dumps(random_state()))

    def drawn() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(numpy.random.rand()), float(torch.rand(()))]

    first = drawn()
    set_random_state(state)
    assert drawn() == first


@pytest.mark.parametrize("changed", [{"torch": "zz"}, {"torch": ""}, {"python": [3, [1], None]}, {"numpy": 1}])
def test_a_random_state_that_is_none_is_told_and_changes_nothing(tmp_path: Path, changed: dict[str, object]) -> None:
    random_of_all = [{**json.loads(json.dumps(random_state())), **changed}]
    state = {"optimizer": {"mapping": []}, "scheduler": {"mapping": []}, "step": 2, "random": random_of_all}
    checkpoint = write_checkpoint(tmp_path, Snapshot(2, {}, state, {"global_step": 2}))
    nothing: Any = SimpleNamespace(load_state_dict=lambda state: None, state_dict=dict)
    saving = Saving(
        tmp_path, nothing, nothing, every_steps=1, every_s=1, processes=Processes(), log=tmp_path / "training.jsonl"
    )
    before = torch.get_rng_state()
    with pytest.raises(RunError, match="cannot be resumed from"):
        saving.resume(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "changed",
    [{"last_epoch": "2"}, {"last_epoch": None}, {"_last_lr": [0.1]}, {"_last_lr": ["a", 1.0]}, {"lr_lambdas": 3}],
)
def test_a_schedule_of_other_kinds_is_told_before_it_is_stepped(tmp_path: Path, changed: dict[str, object]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    inner = torch.optim.SGD([{"params": [parameter], "lr": 0.1}, {"params": [], "lr": 0.2}])
    schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: 1.0)
    check_kinds(json.loads(json.dumps(schedule.state_dict())), schedule.state_dict(), "scheduler")
    (key,) = changed
    with pytest.raises(ValueError, match=f"its scheduler/{key}(/[01])? is none"):
        check_kinds(schedule.state_dict() | changed, schedule.state_dict(), "scheduler")
    with pytest.raises(ValueError, match="its scheduler is none"):
        check_kinds({}, schedule.state_dict(), "scheduler")


class Planted:
    """What a pickle of a stranger does when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("planted",)


def test_nothing_in_a_strangers_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write_checkpoint(tmp_path, snapshot(1))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", ".metadata", "training_args.bin"):
        (written / name).write_bytes(pickle.dumps(Planted()))
    read_checkpoint(written)
    (written / STATE).write_bytes(pickle.dumps(Planted()))
    with pytest.raises(RunError, match="cannot be resumed from"):
        read_checkpoint(written)
    assert not (tmp_path / "planted").exists()
