"""Optimizers and learning-rate schedules by name, with the choices spelled out when a name is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ..errors import UnknownName
from ..optimizers import OPTIMIZERS, SCHEDULES, warm_steps

if TYPE_CHECKING:
    import torch


class Scheduled(Protocol):
    """What a recipe says of the learning rate's course."""

    @property
    def schedule(self) -> str: ...

    @property
    def warmup(self) -> float: ...

    @property
    def steps(self) -> int: ...


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The torch.optim class called `name`.

    Raises:
        UnknownName: there is none that can train quantized weights.
    """
    import torch

    if name not in OPTIMIZERS:
        raise UnknownName(name, "optimizer for quantized weights", OPTIMIZERS)
    found: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    return found


def build_schedule(optimizer: torch.optim.Optimizer, keys: Scheduled) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning-rate schedule over `optimizer`: `keys.warmup` of the steps up, the rest as `keys.schedule` says.

    Step k of W that warm up has k/W of the rate, so that the first trains and the last has all of it.

    Raises:
        UnknownName: there is none of that name that needs nothing but steps and warm-up.
    """
    import torch
    from transformers import get_scheduler

    if keys.schedule not in SCHEDULES:
        raise UnknownName(keys.schedule, "schedule", SCHEDULES)
    warmup = warm_steps(keys.schedule, keys.warmup, keys.steps)
    nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)  # what carries their course until it is taken from there
    steps = max(keys.steps, warmup + 1)  # "polynomial" divides by those behind the warm-up
    theirs = get_scheduler(keys.schedule, nothing, num_warmup_steps=warmup, num_training_steps=steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share, warmup, theirs.lr_lambdas[0]))


def _share(warmup: int, after: Callable[[int], float], done: int) -> float:
    """Share of the learning rate behind so many steps. transformers' own begins with a step at 0, which is lost."""
    return (done + 1) / warmup if done < warmup else after(done)
