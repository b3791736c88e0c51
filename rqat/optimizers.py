"""The optimizers and learning-rate schedules that a recipe can name, known before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

OPTIMIZERS = {
    "AdamW": True,
    "Adam": True,
    "SGD": True,
    "Adamax": True,
    "NAdam": True,
    "RAdam": True,
    "RMSprop": True,
    "Adagrad": True,
    "Adadelta": True,
    "Adafactor": False,
    "ASGD": False,
    "Rprop": False,
}
"""Classes of torch.optim that can train quantized weights, and whether layers are trained as one flat tensor, which is
much faster, and the same for an optimizer that treats every number by itself."""

MOMENTS = {"SGD": 0, "Adagrad": 1, "RMSprop": 1, "Adafactor": 0, "ASGD": 1}
"""Numbers that they keep for every trained one; those not named here keep two, and Adafactor next to none."""

UNSUITABLE = {
    "LBFGS": "it needs a closure",
    "Muon": "it orthogonalizes matrices",
    "SparseAdam": "it is for sparse gradients",
}
"""The other classes of torch.optim, and why they cannot."""

SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Schedules of transformers that need nothing but steps and warm-up."""

RATES = {
    "lr": (0.1, "weights, most of which are below 0.1,"),
    "scale_lr": (0.1, "scales, as a share of themselves,"),
    "zero_lr": (1.0, "zero points, in codes,"),
    "other_lr": (0.1, "weights, most of which are below 0.1,"),
}
"""A training's learning rates: from where on one is doubtful, and what it moves.

Adam and its kin move every value by up to the rate in one step: beyond these, by about as much as there is of it.
"""

IN = {
    "codes": ("weights, in steps of the grid,", 1e-4, "2e-4 to 2e-3"),
    "size": ("weights, as a share of their size,", 1e-4, "5e-4 to 1e-2"),
}
"""Of a training's `lr` that is not counted in weights, by its `lr_in`: what it moves, below which that is next to
nothing, and what is usual."""


def warm_steps(schedule: str, warmup: float, steps: int) -> int:
    """Of a training's steps those that warm up; a schedule that is constant has none."""
    return 0 if schedule == "constant" else math.ceil(warmup * steps)


def doubtful(
    rates: Mapping[str, float | None], optimizer: str, lr_in: str, *, warm: int = 0, zeros: bool = True
) -> Iterator[tuple[str, Literal["error", "warning"], str, str]]:
    """Of learning rates by name: which, how bad it is, what is wrong, and what to do.

    One that is too high is a warning, one that is ten times that an error; never one of SGD. That all are None, too,
    that one does not count, and a share that was meant as a number of its own.

    Args:
        warm: steps with a rising rate, of which the last has all of it.
        zeros: there are zero points to train; else the grid fixes all of them.
    """
    used = {name: rate for name, rate in rates.items() if zeros or name != "zero_lr"}
    if all(rate is None for rate in used.values()):
        wrong = "every rate is null" if used == rates else "every rate is null but zero_lr, and zero points are fixed"
        fix = "Give lr for the weights, or scale_lr for the scales alone."
        yield "lr", "error", f"nothing is trained: {wrong}.", fix
    elif used != rates and rates["zero_lr"] is not None:
        yield "zero_lr", "warning", "the scheme's zero points are fixed: this has no effect.", "Leave it out."
    if optimizer == "Rprop" and warm > 1:
        text = f"Rprop takes its rate from the first step, where warm-up has it at 1/{warm}: all others have no effect."
        yield "warmup", "warning", text, "Set warmup: 0, and a schedule that begins at its highest."
    for name, rate in rates.items():
        most, moved = RATES[name]
        moved, least, usual = IN.get(lr_in if name == "lr" else "", (moved, 0.0, "1e-6 to 1e-3"))
        if rate is None or least <= rate <= most or optimizer == "SGD":
            continue
        level: Literal["error", "warning"] = "error" if rate >= 10 * most else "warning"
        much = "by up to that much" if rate > most else "by no more than that"
        yield name, level, f"{rate:g}: one step would move {moved} {much}.", f"Usual are {usual}."
