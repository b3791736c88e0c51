"""Evaluate: how well a model does on a task, rqat's own or one of lm-eval's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from ...cards import Card
from ...contracts import TaskOptions
from ...errors import UnknownName
from ...estimate import Needs, Sizes
from ...keys import Neutral, PluginKeys
from ...problems import Place, problems_of
from ...stage import BASE, Finding, Look, Making, Planned, Section, Stage, Step, Use

LM_EVAL = "lm-eval:"
"""Prefix of a task that lm-eval provides and no plugin: `lm-eval:gsm8k`."""


class EvaluateKeys(PluginKeys):
    """A task by name, or any lm-eval task; what remains are the task's options.

    Attributes:
        task: name of the task.
        limit: use the first `limit` problems only. None is all.
        batch: sequences per generation batch.
        variants: which models to evaluate: any of `bf16`, quantizer names, objective names. None is all.
    """

    named_by: ClassVar[str] = "task"
    kinds: ClassVar[tuple[str, ...]] = ("task",)

    task: str
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    variants: Annotated[tuple[str, ...] | None, Neutral("which steps there are, not what they find")] = None


class Evaluate(Stage):
    """Every task on every model."""

    order = 50
    sections = (Section("evaluate", EvaluateKeys, "tasks, each on every variant.", many=True),)

    def add(self, making: Making) -> None:
        """See `Stage`."""
        for index, keys in enumerate(making.recipe.evaluate):
            self._add(making, keys, making.place.at("evaluate", index))

    def _add(self, making: Making, keys: EvaluateKeys, place: Place) -> None:
        known = [BASE, *making.made]
        for index, variant in enumerate(keys.variants or ()):
            if variant not in known:
                where = str(place.at("variants", index))
                making.problem(str(UnknownName(variant, "model of this recipe", known, where=where)))
        use = (
            self._of_lm_eval(making, keys, place) if keys.task.startswith(LM_EVAL) else making.use("task", keys, place)
        )
        label = re.sub(r"[^\w.-]+", "-", keys.task)
        for variant in known:
            if keys.variants is None or variant in keys.variants:
                inputs = {"start": making.made[variant]} if variant in making.made else {}
                making.add(self, f"evaluate-{label}-{variant}", variant, keys, place, {"task": use}, inputs)

    def _of_lm_eval(self, making: Making, keys: EvaluateKeys, place: Place) -> Use | None:
        """A task of lm-eval's own as a part; its card is made here, and nothing is behind it."""
        try:
            options = TaskOptions.model_validate(keys.options)
        except ValidationError as error:
            for line in problems_of(error, TaskOptions, place, also_known=EvaluateKeys.model_fields):
                making.problem(line)
            return None
        try:
            release = version("lm_eval")
        except PackageNotFoundError:
            release = "0"
        return Use(Card("task", keys.task, TaskOptions, "", "lm_eval", "lm_eval", release), options)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        tokens = sizes.config.context or 4096
        if not keys.task.startswith(LM_EVAL):
            tokens = min(tokens, getattr(step.parts["task"].options, "max_new_tokens", tokens) + 512)
        return Needs(sizes.model + sizes.cache(keys.batch, tokens))

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        context = look.config.context if look.config else None
        wanted = 0 if keys.task.startswith(LM_EVAL) else getattr(step.parts["task"].options, "max_new_tokens", 0)
        if context is not None and wanted > context:
            text = f"max_new_tokens is {wanted}, but the model's context is {context}."
            yield step.finding("warning", "", text, "Completions end where the context does.")
