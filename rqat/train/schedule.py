"""Optimizers and learning-rate schedules by name, with the choices spelled out when a name is wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UnknownName
from ..optimizers import OPTIMIZERS, SCHEDULES

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


def build_schedule(optimizer: torch.optim.Optimizer, keys: Scheduled) -> Any:
    """The learning-rate schedule over `optimizer`: `keys.warmup` of the steps up, the rest as `keys.schedule` says.

    Raises:
        UnknownName: there is none of that name that needs nothing but steps and warm-up.
    """
    from transformers import get_scheduler

    if keys.schedule not in SCHEDULES:
        raise UnknownName(keys.schedule, "schedule", SCHEDULES)
    warmup = math.ceil(keys.warmup * keys.steps)
    return get_scheduler(keys.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=keys.steps)
