"""Quantize: codes, scales and zero points of a model's layers, without training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Annotated, Any, ClassVar, Literal

from ...cards import Kind
from ...errors import RqatError
from ...estimate import FLOAT32, Needs, Sizes
from ...keys import Neutral, PluginKeys
from ...model.config import ModelConfig, check_quantizable
from ...model.layers import EMBEDDING, choose_layers, listed
from ...model.memory import BACKWARD_TOKENS, JUDGED_AT_ONCE, SMALL
from ...problems import Place
from ...scheme import Scheme
from ...stage import Finding, Look, Making, Planned, Section, Stage, Step, Use
from ..budget import Budget
from ..calibrate import Calibrate, CalibrationKeys

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 16384}
"""Tokens per forward pass: enough to keep the matrix units busy. Part of the result, by rounding, so never adapted."""

FITTED_AT_ONCE = 1 << 25
"""Weights whose scales a quantizer fits at once, at most."""


class TransformKeys(PluginKeys):
    """A transform by name; what remains are its options.

    Attributes:
        method: name of the transform.
    """

    named_by: ClassVar[str] = "method"
    kinds: ClassVar[tuple[str, ...]] = ("transform",)

    method: str


class QuantizeKeys(PluginKeys):
    """A quantizer by name; what remains are its options. `[rotate, gptq]` names transforms in front of it.

    Attributes:
        method: name of the quantizer.
        transforms: what is done to the whole model before it is quantized, in order.
        skip: linear layers left as they are: shell patterns on full names (`model.layers.0.*`, `*.down_proj`).
        indivisible: what to do with layers whose input features do not split into whole groups.
    """

    named_by: ClassVar[str] = "method"
    kinds: ClassVar[tuple[str, ...]] = ("quantizer",)
    follows: ClassVar[str] = "transforms"

    method: str
    transforms: Annotated[tuple[TransformKeys, ...], Neutral("they stand among the parts")] = ()
    skip: tuple[str, ...] = ()
    indivisible: Literal["error", "skip"] = "error"


def needs_whole_model(step: Step, needs: Collection[str]) -> bool:
    """Whether a quantize step has the whole model in memory; else it reads and writes block by block.

    Transforms change all of it, and what tokens count is found by a pass back through it.

    Args:
        needs: statistics that the step's quantizer asks for.
    """
    return "saliency" in needs or any(role.startswith("transform") for role in step.parts)


class Quantize(Stage):
    """One quantizer on the whole model."""

    order = 20
    sections = (
        Section(
            "quantize", QuantizeKeys, "the quantizer whose result is trained, exported and evaluated; None is none.",
            default=None, optional=True,
        ),
        Section("compare", QuantizeKeys, "quantizers that are only evaluated, for comparison.", many=True),
    )  # fmt: skip
    makes_model = True
    of_scheme = True

    def add(self, making: Making) -> None:
        """See `Stage`."""
        recipe, place = making.recipe, making.place
        if recipe.quantize is None and recipe.start is None and "quantize" not in recipe.model_fields_set:
            making.problem(f"{place.at('quantize')}: is missing.")
        if recipe.quantize is not None:
            making.last = self._add(making, recipe.quantize, place.at("quantize"))
        for index, keys in enumerate(recipe.compare):
            self._add(making, keys, place.at("compare", index))

    def _add(self, making: Making, keys: QuantizeKeys, place: Place) -> str:
        parts = _transforms(making, keys, place)
        use = None if _misplaced(making, keys, place) else making.use("quantizer", keys, place)
        calibration = making.find(Calibrate.name)
        needs = bool(use and use.card.needs)
        if needs and not calibration:
            by_flag = str(place.at("method")) == "--method"  # not `--set`, which commands have that lack the other
            wanted = "give --calibration SOURCE" if by_flag else "add `calibration: {source: ...}`"
            making.problem(f"{place.at('method')}: '{keys.method}' looks at data; {wanted}.")
        variant = making.variant(keys.method)
        parts = parts | {"quantizer": use}
        inputs = {"calibration": calibration} if needs else {}
        inputs |= Budget().add_before(making, keys, parts, calibration)
        name = making.add(self, f"quantize-{variant}", variant, keys, place, parts, inputs)
        making.made[variant] = name
        return variant

    def shown(self, step: Step) -> dict[str, Any]:
        """See `Stage`; transforms are shown as parts."""
        return {key: value for key, value in super().shown(step).items() if key != QuantizeKeys.follows}

    def schemes(self, step: Step, plan: Planned, config: ModelConfig) -> dict[str, Scheme]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, QuantizeKeys)
        if Budget.name in step.inputs:
            return Budget().sketch(plan.step(step.inputs[Budget.name]), plan, config)
        return choose_layers(
            config.linears, plan.scheme, skip=keys.skip, indivisible=keys.indivisible, ends=config.ends
        )

    def budget(self, step: Step, plan: Planned, config: ModelConfig) -> int | None:
        """See `Stage`."""
        if Budget.name not in step.inputs:
            return None
        return Budget().bytes(plan.step(step.inputs[Budget.name]), config)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        use = step.parts["quantizer"]
        needs = {*use.card.needs, *use.options.also_needs()}
        hidden, linears = sizes.config.hidden, sizes.config.linears
        widest = max((width for _, width in linears.values()), default=0)
        known = plan.known_schemes(step, sizes.config)
        chosen = {*(linears if known is None else known)}
        ends = {name: math.prod(shape) for name, shape in sizes.config.ends.items()}
        largest = _largest(sizes.config, chosen)
        block = sizes.quantized // max(1, sizes.config.blocks) * sizes.width
        end = max(ends.values(), default=0) * sizes.width
        # Beside the layer being rounded: its block's weights as they were before. An end is no part of a block: itself,
        # and as it was before, where its quantizer works on blocks.
        solves = bool({"hessian", "cross"} & needs)
        working = _rounding(largest, solves) + block
        chosen_end = max((ends[name] for name in chosen & ends.keys()), default=0)
        at_end = _rounding(chosen_end, solves) + (2 if solves else 1) * chosen_end * sizes.width
        # One block that is worked on, and the one before it until it has been run; finished layers are on the disk.
        stays = sizes.model if needs_whole_model(step, needs) else 2 * block
        resumed_from = sizes.codes
        if "calibration" not in step.inputs:
            return Needs(max(stays + max(working, at_end), end), sizes.checkpoint, resumed_from)
        calibration = plan.step(step.inputs["calibration"]).settings
        assert isinstance(calibration, CalibrationKeys)
        streams = 3 if {"cross", "streams"} & needs else 1  # the original's before and behind a block, too
        states = streams * calibration.all_tokens * hidden * sizes.width
        # A block's inputs are four: three as wide as the hidden state, one as the MLP. To solve, the widest's matrix is
        # put in order, factored, inverted and factored again.
        matrices = len({"hessian", "cross"} & needs) * (3 * hidden**2 + widest**2) * FLOAT32
        solving = 4 * widest**2 * FLOAT32 if matrices else 0
        at_once = min(calibration.all_tokens, max(TOKENS_AT_ONCE[sizes.device], calibration.tokens))
        forward = at_once * (4 * widest + 6 * hidden) * sizes.width
        # A block that is trained: latents, two moments and two temporaries in float32, a gradient and two copies.
        trained = block / sizes.width * (5 * FLOAT32 + 3 * sizes.width) if "streams" in needs else 0
        there = max(forward, solving + working, trained)
        # Before the first block: hidden states between all blocks, and one sequence's logits with their gradients.
        backward = 0
        if "saliency" in needs:
            kept = min(calibration.all_tokens, max(BACKWARD_TOKENS[sizes.device], calibration.tokens))
            backward = kept * hidden * sizes.config.blocks * sizes.width
            backward += 3 * calibration.tokens * sizes.config.vocab * FLOAT32
        if solves and chosen_end:  # the matrix of what the head reads, too, and to solve
            at_end += 8 * hidden**2 * FLOAT32
        worst = max(stays + max(matrices + there, backward + forward, at_end), end)
        return Needs(states + worst, sizes.checkpoint, resumed_from)

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        assert isinstance(step.settings, QuantizeKeys)
        if look.config is None:
            return
        place = look.plan.place.at("model")
        try:
            check_quantizable(look.config)
        except RqatError as error:
            yield Finding("error", f"{place}: {error.message}", error.hint)
            return
        try:
            chosen = look.plan.schemes(step, look.config)
        except RqatError as error:
            yield _about_layers(step, look, error)
            return
        if look.config.tied:
            unless = ", unless a transform gives it one of its own" if step.settings.transforms else ""
            what = "both are one layer" if EMBEDDING in chosen else "both stay unquantized"
            yield Finding("note", f"{place}: lm_head shares the embedding's weight{unless}; {what}.")
        left = [name for name in look.config.linears if name not in chosen]
        if left:
            shown = listed({name: look.config.linears[name] for name in left})
            yield Finding("note", f"{step.name}: {len(left)} linear layers stay as they are: {shown}.")
        if 2 * look.config.bytes > SMALL:
            use = step.parts["quantizer"]
            whole = needs_whole_model(step, {*use.card.needs, *use.options.also_needs()})
            how = "the whole model is in memory" if whole else "weights are read and written block by block"
            why = ", for its transforms" if step.settings.transforms else ", for token_weights" if whole else ""
            yield Finding("note", f"{step.name}: {how}{why}.")


def _largest(config: ModelConfig, chosen: Collection[str]) -> int:
    """Weights of the chosen layers that are worked on at once, at most: those of a block that read one input."""
    at_once = (
        [f"{config.layout.block(index)}.{name}" for name in group.names]
        for index in range(config.blocks)
        for group in config.layout.inputs
    )
    sums = (
        sum(math.prod(config.linears[n]) for n in names if n in chosen and n in config.linears) for names in at_once
    )
    return max(sums, default=0)


def _rounding(weights: int, solves: bool) -> int:
    """Bytes beside a layer of so many weights while it is rounded, or while what that has cost is found.

    To round it: a copy in float32, an error on a grid that is tried, and its values; its codes. Where a Hessian is
    solved for: a copy, the same with its columns in order, and as the loop over them leaves it; its codes, and those in
    the columns' own order; of the weights whose scales are fitted at once, four arrays: codes less zero points, what
    the Hessian makes of them, products, and sums of them in float64. Afterwards: codes, the layer in float32 and its
    new values; of the weights judged at once, the difference, two products and a sum.

    Args:
        solves: for a Hessian.
    """
    fitted = 4 * FLOAT32 * min(weights, FITTED_AT_ONCE) + weights if solves else 0
    judged = (2 * FLOAT32 + 1) * weights + 4 * FLOAT32 * min(weights, JUDGED_AT_ONCE)
    return max((3 * FLOAT32 + 1) * weights + fitted, judged)


def _about_layers(step: Step, look: Look, error: RqatError) -> Finding:
    """Why layers cannot be quantized as asked; the message begins with the key it is about, if it is about one."""
    skip, scheme = "quantize.skip: ", "scheme: "
    if error.message.startswith(scheme):
        text = error.message.removeprefix(scheme)
        return Finding("error", f"{look.plan.place.at('scheme')}: {text}", error.hint)
    key = "skip" if error.message.startswith(skip) else ""
    return step.finding("error", key, error.message.removeprefix(skip), error.hint)


def _transforms(making: Making, keys: QuantizeKeys, place: Place) -> dict[str, Use | None]:
    """The parts in front of the quantizer: roles "transform", "transform-2", ..."""
    parts: dict[str, Use | None] = {}
    for index, transform in enumerate(keys.transforms):
        inside = place.at(QuantizeKeys.follows, index)
        if _is(making, "quantizer", transform.method) and not _is(making, "transform", transform.method):
            text = f"'{transform.method}' is a quantizer, and one quantizer stands at the end"
            making.problem(f"{inside.at('method')}: {text}; in front of it stand transforms, known: {_names(making)}.")
            continue
        parts["transform" if index == 0 else f"transform-{index + 1}"] = making.use("transform", transform, inside)
    return parts


def _misplaced(making: Making, keys: QuantizeKeys, place: Place) -> bool:
    """Whether what should be a quantizer is a transform, which is told."""
    name = keys.method
    if not _is(making, "transform", name) or _is(making, "quantizer", name):
        return False
    wanted = f"add a quantizer behind it: `quantize: [{name}, rtn]`"
    making.problem(f"{place.at('method')}: '{name}' is a transform, with no quantizer behind it; {wanted}.")
    return True


def _is(making: Making, kind: Kind, name: str) -> bool:
    return any(name in (card.name, card.full_name) for card in making.known(kind))


def _names(making: Making) -> str:
    return ", ".join(card.name for card in making.known("transform")) or "none"
