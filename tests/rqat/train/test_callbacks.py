"""What hangs on a trainer: trackers are told what training.jsonl holds, and none of them can end a training."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers.integrations
from transformers import PreTrainedModel, TrainerCallback

from rqat.stages.train import run as train
from rqat.storage import read_json_lines
from rqat.train import callbacks
from rqat.train.callbacks import done_once
from tests.tiny import tiny_model
from tests.training import digests, train_step, with_callback, write_start


class Tracker(TrainerCallback):
    """Stands in for a tracker's callback; notes what it is told."""

    told: list[tuple[str, Any]] = []  # noqa: RUF012
    fails = ""

    def _note(self, event: str, value: Any) -> None:
        if event == self.fails:
            raise RuntimeError("no login\nhere")
        self.told.append((event, value))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._note("begin", args.run_name)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._note("log", (state.global_step, given["logs"].get("loss")))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._note("end", None)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Tracker]:
    found = type("Fresh", (Tracker,), {"told": []})
    made = lambda names: [found] if names == "wandb" else []  # noqa: E731 (the Trainer itself asks for none)
    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", made)
    return found


def trained(folder: Path, **keys: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of training.jsonl, and how often a checkpoint was told of."""
    write_start(folder)
    job, step = train_step(folder, "sft", log=("wandb",), steps=4, max_tokens=64, lr=1e-3, **keys)
    saved: list[int] = []
    job.saved = lambda: saved.append(1)
    train.run(job, step)
    return read_json_lines(job.workdir(step) / "training.jsonl"), saved


def test_a_tracker_is_told_what_the_log_holds(tracker: type[Tracker], tmp_path: Path) -> None:
    lines, saved = trained(tmp_path, save_every=2)
    assert tracker.told[0] == ("begin", "run-02-train-sft")
    assert tracker.told[-1] == ("end", None)
    logged = [value for event, value in tracker.told if event == "log" and value[1] is not None]
    assert logged == [(line["step"], line["loss"]) for line in lines]
    assert len(lines) == 4
    assert len(saved) == 2


@pytest.mark.parametrize("event", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_told_once_and_left_out(
    tracker: type[Tracker], tmp_path: Path, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    tracker.fails = event
    with caplog.at_level(logging.WARNING, "rqat"):
        lines, _ = trained(tmp_path)
    assert len(lines) == 4
    assert [record.message for record in caplog.records] == ["wandb: nothing is logged there: no login here"]


def test_tensorboard_writes_into_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_start(tmp_path)
    job, step = train_step(tmp_path, "sft", log=("tensorboard",), steps=4, max_tokens=64, lr=1e-3)
    train.run(job, step)
    read = EventAccumulator(str(job.folder / "logs" / step.name))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("train/loss")]
    lines = read_json_lines(job.workdir(step) / "training.jsonl")
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]


class Micro(TrainerCallback):
    """Notes, after every micro-batch, whether all modules are in training mode."""

    def __init__(self) -> None:
        self.seen: list[bool] = []
        self.operations = 0.0

    def on_substep_end(self, args: Any, state: Any, control: Any, model: Any, **given: Any) -> None:
        self.seen.append(all(module.training for module in model.modules()))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.operations = state.total_flos


def test_modules_and_parameters_are_gone_through_once_and_operations_counted_as_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for name, once in (("once", done_once), ("ever", lambda trainer: nullcontext())):
        monkeypatch.setattr(callbacks, "done_once", once)
        write_start(tmp_path / name)
        job, step = train_step(tmp_path / name, "sft", steps=2, batch=4, micro_batch=2, max_tokens=64, lr=1e-3)
        micro, walked, counted = Micro(), [], []
        with (
            with_callback(job, step, micro),
            mock.patch.object(torch.nn.Module, "train", noting(walked, torch.nn.Module.train)),
            mock.patch.object(PreTrainedModel, "num_parameters", noting(counted, PreTrainedModel.num_parameters)),
        ):
            train.run(job, step)
        assert micro.seen == [True, True]
        found.append((micro.operations, len(walked), len(counted), digests(job.workdir(step))))
    (operations, walks, counts, files), (as_ever, more_walks, more_counts, same_files) = found
    assert operations == as_ever > 0
    assert walks < more_walks
    assert counts < more_counts
    assert files == same_files


def noting(calls: list[Any], function: Any) -> Any:
    def noted(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(self)
        return function(self, *given, **named)

    return noted


def test_evaluation_mode_is_there_where_it_is_asked_for(tmp_path: Path) -> None:
    """A look in the midst of training switches all modules, and back."""
    model = tiny_model()
    trainer: Any = SimpleNamespace(model=model)
    with done_once(trainer):
        assert all(module.training for module in model.modules())
        model.eval()
        assert not any(module.training for module in model.modules())
        assert model.train() is model
        assert all(module.training for module in model.modules())
    assert "train" not in vars(model)
