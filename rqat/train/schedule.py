"""Optimizers and learning-rate schedules by name, with the choices spelled out when a name is wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import RqatError, UnknownName
from .optimizer import UNSUITABLE

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


NEEDS_MORE = frozenset({"reduce_lr_on_plateau", "greedy", "warmup_stable_decay", "cosine_warmup_with_min_lr"})
"""Schedules that follow an evaluation or need arguments a recipe has no key for."""


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The torch.optim class called `name`.

    Raises:
        UnknownName: there is none, or it cannot train quantized weights.
    """
    import torch

    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and key != "Optimizer"
    }
    if name not in known or name in UNSUITABLE:
        raise UnknownName(name, "optimizer for quantized weights", known.keys() - UNSUITABLE.keys())
    return known[name]


def build_schedule(optimizer: torch.optim.Optimizer, keys: Scheduled) -> Any:
    """The learning-rate schedule over `optimizer`: `keys.warmup` of the steps up, the rest as `keys.schedule` says.

    Raises:
        UnknownName: transformers has no schedule of that name that needs no further arguments.
        RqatError: it needs arguments that a recipe cannot give.
    """
    from transformers import get_scheduler
    from transformers.trainer_utils import SchedulerType

    known = {member.value for member in SchedulerType} - NEEDS_MORE
    if keys.schedule not in known:
        raise UnknownName(keys.schedule, "schedule", known)
    warmup = math.ceil(keys.warmup * keys.steps)
    try:
        return get_scheduler(keys.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=keys.steps)
    except (TypeError, ValueError) as error:
        raise RqatError(
            f"schedule '{keys.schedule}' needs arguments a recipe cannot give: {error}.",
            hint="Use cosine, linear, constant_with_warmup or polynomial.",
        ) from error
