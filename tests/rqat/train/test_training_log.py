"""training.jsonl tells of a loss that rises, once, and in the same way where a training resumes."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rqat.train.training_log import Log, rise_at

HUMP = [0.05] * 5 + [0.05 + 0.004 * step for step in range(30)]


def logged(path: Path, losses: list[float], *, done: int = 0, **figures: float) -> None:
    """What a training of some steps hands to its log, after `done` of them."""
    bar: Any = SimpleNamespace(update=lambda *_: None)
    log = Log(path, "03-train-kd", done=done, steps=len(losses), bar=bar)
    for step, loss in enumerate(losses[done:], start=done + 1):
        state: Any = SimpleNamespace(global_step=step, num_input_tokens_seen=10 * step)
        log.on_log(None, state, None, logs={"loss": loss, **figures})  # type: ignore[arg-type]


def test_a_loss_that_rises_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="rqat")
    logged(tmp_path / "training.jsonl", HUMP)
    [told] = caplog.messages
    assert told.startswith("03-train-kd: after 25 steps the loss is 1.8 times what it was at first")
    assert "lower lr and scale_lr" in told
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == len(HUMP)


@pytest.mark.parametrize("stopped", [10, 25, 30])
def test_a_resumed_training_tells_it_once_in_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: int
) -> None:
    caplog.set_level(logging.WARNING, logger="rqat")
    path = tmp_path / "training.jsonl"
    logged(path, HUMP[:stopped])
    before = len(caplog.messages)
    logged(path, HUMP, done=stopped)
    assert (before, len(caplog.messages)) == (int(stopped >= 25), 1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, len(HUMP) + 1))


@pytest.mark.parametrize(
    ("losses", "figures"),
    [
        ([0.5 - 0.01 * step for step in range(40)], {}),  # falls
        ([0.5 + 0.1 * (-1) ** step for step in range(40)], {}),  # noise
        (HUMP[:24], {}),  # too few steps to say
        (HUMP, {"reward": 0.5}),  # of rollouts it means nothing
    ],
)
def test_others_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, losses: list[float], figures: dict[str, float]
) -> None:
    caplog.set_level(logging.WARNING, logger="rqat")
    logged(tmp_path / "training.jsonl", losses, **figures)
    assert caplog.messages == []


NOISE = [0.09 * math.sin(2.4 * step) for step in range(80)]
WON_AND_LOST = [0.4 + 0.16 * math.exp(-(((step - 14) / 12) ** 2)) + NOISE[step] for step in range(64)]


@pytest.mark.parametrize("stopped", [0, 20, 60])
def test_rewards_that_fall_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: int) -> None:
    caplog.set_level(logging.WARNING, logger="rqat")
    path = tmp_path / "training.jsonl"
    for count, done in ((stopped, 0), (len(WON_AND_LOST), stopped)):
        rewarded(path, WON_AND_LOST[:count], done=done)
    [told] = caplog.messages
    assert re.search(r"the mean reward of steps \d+ to \d+ is 0\.4\d; it was 0\.5\d in steps \d+ to \d+", told), told
    assert "`lr: null`" in told


@pytest.mark.parametrize(
    "rewards",
    [
        [0.4 + 0.002 * step + NOISE[step] for step in range(80)],  # they rise
        [0.5 + NOISE[step] for step in range(80)],  # they stay
        [0.5] * 40 + [0.5 - 0.001] * 5,  # as good as the same
        WON_AND_LOST[:31],  # too few steps to say
        [1.0] * 80,
    ],
)
def test_other_rewards_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture, rewards: list[float]) -> None:
    caplog.set_level(logging.WARNING, logger="rqat")
    rewarded(tmp_path / "training.jsonl", rewards)
    assert caplog.messages == []


def rewarded(path: Path, rewards: list[float], *, done: int = 0) -> None:
    """What a training by rewards hands to its log, after `done` steps."""
    bar: Any = SimpleNamespace(update=lambda *_: None)
    log = Log(path, "06-train-grpo", done=done, steps=len(rewards), bar=bar)
    for step, reward in enumerate(rewards[done:], start=done + 1):
        state: Any = SimpleNamespace(global_step=step, num_input_tokens_seen=10 * step)
        log.on_log(None, state, None, logs={"loss": 0.0, "reward": reward})  # type: ignore[arg-type]


def test_a_rise_is_that_of_means() -> None:
    assert rise_at([1.0] * 5 + [2.0] * 20) == 2.0
    assert rise_at([1.0] * 5 + [2.0, 2.2] * 10) == pytest.approx(2.1)
    assert rise_at([1.0] * 24 + [100.0]) == 0.0  # one step is no hump
    assert rise_at([0.0] * 5 + [1.0] * 20) == 0.0


def test_batches_of_few_rows_scatter() -> None:
    """Losses of the quickstart at rates of 1e-7, where nothing moves: 1.7 times the first after 25 steps."""
    losses = [70, 93, 106, 3, 43, 91, 140, 214, 210, 32, 194, 29, 52, 96, 100, 88, 211, 3, 110, 77, 116, 84, 95, 76, 58]
    assert sum(losses[-20:]) / 20 > 1.5 * sum(losses[:5]) / 5
    assert rise_at(losses) == 0.0
    assert rise_at([loss + 300 * (step >= 5) for step, loss in enumerate(losses)]) > 1.5
