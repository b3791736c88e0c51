"""The learning rate's course: every step trains, and a schedule that was interrupted goes on where it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from rqat.optimizers import SCHEDULES
from rqat.stages.train import TrainKeys
from rqat.train.schedule import build_schedule


def keys(**changes: Any) -> TrainKeys:
    return TrainKeys.model_validate({"objective": "kd", "data": {"source": "arith"}, "steps": 8} | changes)


def inner() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[float]:
    """Of so many steps to come."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_trains_and_warm_up_ends_at_the_whole_rate(name: str) -> None:
    optimizer, theirs = inner(), inner()
    found = rates(optimizer, build_schedule(optimizer, keys(schedule=name, warmup=0.25)), 8)
    after = rates(theirs, get_scheduler(name, theirs, num_warmup_steps=2, num_training_steps=8), 8)[2:]
    assert found[:2] == [2.0 if name == "constant" else 1.0, 2.0]
    assert found[2:] == pytest.approx(after, abs=1e-7)  # the least rate of "polynomial"
    assert min(found) > 0


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_single_step_has_the_whole_rate(name: str) -> None:
    optimizer = inner()
    assert rates(optimizer, build_schedule(optimizer, keys(schedule=name, steps=1)), 1) == [2.0]


def test_an_interrupted_schedule_goes_on_where_it_was() -> None:
    optimizer, again = inner(), inner()
    asked = keys(warmup=0.5)
    schedule = build_schedule(optimizer, asked)
    before = rates(optimizer, schedule, 3)
    assert before == [0.5, 1.0, 1.5]
    resumed = build_schedule(again, asked)
    resumed.load_state_dict(schedule.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert rates(again, resumed, 5) == rates(optimizer, schedule, 5)
