"""What may be wrong with a train step's keys, beside what pydantic says of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...batches import UnevenBatch, split_batch
from ...errors import RqatError, nearest
from ...model.layers import ENDS
from ...optimizers import OPTIMIZERS, RATES, SCHEDULES, too_fast
from ...stage import Finding, Look, Step

if TYPE_CHECKING:
    from . import TrainKeys

OF_LATENTS = ("lr_in", "latent_reach", "weight_decay")
"""Keys that mean nothing where there are no latent weights."""


def key_problems(step: Step, keys: TrainKeys, look: Look) -> Iterator[Finding]:
    """All of them, in the order in which they are told."""
    yield from _lengths(step, keys, look)
    yield from _rates(step, keys)
    yield from _without_effect(step, keys)
    yield from _batches(step, keys, look.processes)
    for name, value, known in (("schedule", keys.schedule, SCHEDULES), ("optimizer", keys.optimizer, OPTIMIZERS)):
        if value not in known:
            near = nearest(value, known)
            fix = f"Did you mean '{near}'?" if near else f"Known: {', '.join(known)}."
            yield step.finding("error", name, f"'{value}' is not known.", fix)
    if keys.train_embedding:
        yield from _ends(step, look)
    if keys.save_steps is not None and keys.save_steps > keys.steps:
        text = f"no checkpoint before the last of {keys.steps} steps; interrupted, it starts over. By time: 10m."
        yield step.finding("note", "save_every", text)


def _rates(step: Step, keys: TrainKeys) -> Iterator[Finding]:
    rates = {name: getattr(keys, name) for name in RATES}
    for name, level, text in too_fast(rates, keys.optimizer, keys.lr_in):
        yield step.finding(level, name, text, "Usual are 1e-6 to 1e-3.")
    if all(rate is None for rate in rates.values()):
        text = "nothing is trained: every rate is null."
        yield step.finding("error", "lr", text, "Give lr for the weights, or scale_lr for the scales alone.")


def _ends(step: Step, look: Look) -> Iterator[Finding]:
    """Whether there is an embedding or a head on a grid to train."""
    try:
        layers = look.plan.schemes(step, look.config) if look.config else dict.fromkeys(ENDS)
    except RqatError:
        return  # which another step tells
    if not any(end in layers for end in ENDS):
        text = "neither the embedding nor the head is quantized, so there is nothing to train on a grid."
        fix = "Leave it out, or give them a scheme: `scheme: {default: w2g128, lm_head: w4g128, embed_tokens: w4g128}`."
        yield step.finding("error", "train_embedding", text, fix)


def _lengths(step: Step, keys: TrainKeys, look: Look) -> Iterator[Finding]:
    context = look.config.context if look.config else None
    if context is not None and keys.max_tokens > context:
        text = f"{keys.max_tokens} tokens, but the model's context is {context}."
        yield step.finding("error", "max_tokens", text, f"Use at most {context}.")
    if keys.data.split == "test":
        text = "this reads the test split."
        yield step.finding("warning", "data.split", text, "Scores on that data will say nothing; use train.")


def _without_effect(step: Step, keys: TrainKeys) -> Iterator[Finding]:
    """Keys of objectives that are trained on rewards, for one that is not; those of latents, where codes stay."""
    card, fields = step.parts["objective"].card, type(keys).model_fields
    for name in OF_LATENTS if keys.lr is None else ():
        if getattr(keys, name) != fields[name].default:
            yield step.finding("warning", name, "lr is null, so codes stay: this has no effect.", "Leave it out.")
    for name in ("task", "gate"):
        if getattr(keys, name) != fields[name].default and not card.graded:
            text = f"'{card.name}' is not trained on rewards: this has no effect."
            yield step.finding("warning", name, text, "Leave it out.")


def _batches(step: Step, keys: TrainKeys, processes: int) -> Iterator[Finding]:
    """Whether a batch splits into micro-batches, and over the processes."""
    try:
        split_batch(keys.batch, keys.at_once, processes)
    except UnevenBatch as error:
        yield step.finding("error", error.key, error.message, error.hint)
