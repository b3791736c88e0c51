"""The optimizers and learning-rate schedules that a recipe can name, known before torch is imported."""

from __future__ import annotations

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


def doubtful(
    rates: Mapping[str, float | None], optimizer: str, lr_in: str
) -> Iterator[tuple[str, Literal["error", "warning"], str, str]]:
    """Of learning rates by name: which, how bad it is, what is wrong, and what to do.

    One that is too high is a warning, one that is ten times that an error; never one of SGD. That all are None, too.
    """
    if all(rate is None for rate in rates.values()):
        fix = "Give lr for the weights, or scale_lr for the scales alone."
        yield "lr", "error", "nothing is trained: every rate is null.", fix
    for name, rate in rates.items():
        most, moved = RATES[name]
        if rate is None or rate <= most or optimizer == "SGD":
            continue
        moved = "weights, in steps of the grid," if (name, lr_in) == ("lr", "codes") else moved
        level: Literal["error", "warning"] = "error" if rate >= 10 * most else "warning"
        yield name, level, f"{rate:g}: one step would move {moved} by up to that much.", "Usual are 1e-6 to 1e-3."
