"""The optimizers and learning-rate schedules that a recipe can name, known before torch is imported."""

from __future__ import annotations

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
