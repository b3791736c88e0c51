"""Evaluate: how well a model does on a task, rqat's own or one of lm-eval's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from ...cards import Card
from ...contracts import TaskOptions
from ...errors import UnknownName
from ...estimate import ENGINE_ROWS, PROMPT_TOKENS, Needs, Sizes
from ...keys import ModelKeys, Neutral, PluginKeys
from ...model.extras import about_original
from ...problems import Place, problems_of
from ...stage import BASE, PRODUCED, Finding, Look, Making, Planned, Section, Stage, Step, Use
from ..produce import Produce

LM_EVAL = "lm-eval:"
"""Prefix of a task that lm-eval provides and no plugin: `lm-eval:gsm8k`."""

COMPARED_BYTES = {"cpu": 1 << 29, "cuda": 1400 << 20}
"""Of logits and their logarithms, of both models, that are compared at once; on a GPU several sequences run as one."""

UNKNOWN_TO_LM_EVAL = ("system", "chat_template_kwargs")
"""Options of tasks that tasks of lm-eval's own do not take."""


def _an_address(url: str | None) -> str | None:
    """An address that may stand in a manifest."""
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address; write one like http://localhost:8000/v1.")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "holds a name or a password, which would stand in the run's files; OPENAI_API_KEY takes a key."
        )
    return url


class EvaluateKeys(PluginKeys):
    """A task by name, or any lm-eval task; what remains are the task's options.

    Attributes:
        task: name of the task.
        limit: use the first `limit` problems only. None is all.
        batch: sequences per generation batch.
        backend: what writes: transformers; the engine, on packed weights; `auto` is the engine on CUDA where it knows
            the model. Tasks of lm-eval's own are asked through transformers unless this says `packed`.
        base_url: a server with OpenAI's API that writes, e.g. http://localhost:8000/v1; of the model here only config
            and tokenizer are read.
        served_as: what the server calls the model. None is the only one it has.
        variants: which models to evaluate: any of `bf16`, quantizer names, objective names. None is all.
        original: what a task that compares models compares with; None is the model before quantization.
    """

    named_by: ClassVar[str] = "task"
    kinds: ClassVar[tuple[str, ...]] = ("task",)

    task: str
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    backend: Literal["auto", "transformers", "packed"] = "auto"
    base_url: Annotated[str | None, AfterValidator(_an_address)] = None
    served_as: str | None = None
    variants: Annotated[tuple[str, ...] | None, Neutral("which steps there are, not what they find")] = None
    original: ModelKeys | None = None


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
        compares = use is not None and bool(use.card.compares)
        if keys.original is not None and use is not None and not compares:
            those = ", ".join(card.name for card in making.known("task") if card.compares)
            making.problem(f"{place.at('original')}: '{keys.task}' compares no models; those that do: {those}.")
        label = re.sub(r"[^\w.-]+", "-", keys.task)
        written = Produce().add_for(making, use, place) if use is not None else []
        produced = {f"{PRODUCED}-{number}": name for number, name in enumerate(written, 1)}
        for variant in known:
            if keys.variants is None or variant in keys.variants:
                inputs = {"start": making.made[variant]} if variant in making.made else {}
                making.add(self, f"evaluate-{label}-{variant}", variant, keys, place, {"task": use}, inputs | produced)

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

    def in_several(self, step: Step) -> bool:
        """See `Stage`; what is written here is shared out, where there may be more than a batch of it."""
        keys, task = step.settings, step.parts["task"]
        assert isinstance(keys, EvaluateKeys)
        if keys.base_url is not None or keys.task.startswith(LM_EVAL) or task.card.compares:
            return False
        temperature, seeds = getattr(task.options, "temperature", 0.0), getattr(task.options, "seeds", ())
        times = len(seeds) if temperature > 0 else 1
        return keys.limit is None or keys.limit > keys.batch or times > 1

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        if keys.base_url is not None:
            return Needs(0)
        quantized = "start" in step.inputs
        # What its weights are decoded from, as it is loaded.
        codes = sizes.codes if quantized and sizes.device == "cpu" else 0
        if step.parts["task"].card.compares:
            original = sizes.teacher(keys.original) if quantized or keys.original is not None else 0  # else it is both
            return Needs(sizes.model + original + max(codes, COMPARED_BYTES[sizes.device]))
        use = step.parts["task"]
        tokens, prompt = sizes.config.context or 4096, use.card.longest_prompt or PROMPT_TOKENS
        if not keys.task.startswith(LM_EVAL):
            tokens = min(tokens, getattr(use.options, "max_new_tokens", tokens) + prompt)
        if sizes.device == "cpu" or keys.backend == "transformers":
            return Needs(sizes.model + max(codes, sizes.cache(keys.batch, tokens)))
        processes = sizes.processes if self.in_several(step) else 1
        share = ENGINE_ROWS if keys.limit is None else math.ceil(keys.limit / processes)
        rows = min(ENGINE_ROWS, max(keys.batch, share))
        nucleus = getattr(use.options, "temperature", 0.0) > 0 and getattr(use.options, "top_p", 1.0) < 1
        passing = sizes.engine_passing(rows, min(prompt, tokens), nucleus=nucleus)
        return Needs(sizes.model + sizes.engine_cache(rows, tokens) + passing)

    def lighter(self, step: Step, device: str) -> dict[str, Any]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        return {"batch": keys.batch // 2} if keys.batch > 1 else {}

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        context = look.config.context if look.config else None
        card = step.parts["task"].card
        wanted = (
            0
            if keys.task.startswith(LM_EVAL) or card.compares
            else getattr(step.parts["task"].options, "max_new_tokens", 0)
        )
        if context is not None and wanted > context:
            text = f"max_new_tokens is {wanted}, but the model's context is {context}."
            yield step.finding("warning", "", text, "Completions end where the context does.")
        yield from _without_effect(step, keys)
        if keys.base_url is not None and "start" in step.inputs:
            text = f"a server writes, but the step is about '{step.variant}' of this run."
            yield step.finding("error", "base_url", text, f"Write `variants: [{BASE}]`, and `model: ` what is served.")
        if keys.base_url is not None and card.compares:
            yield step.finding("error", "base_url", f"'{keys.task}' compares models here.", "Leave it out.")
        if keys.served_as is not None and keys.base_url is None:
            yield step.finding("error", "served_as", "there is no server.", "Name it with base_url.")
        if keys.original is not None:
            for problem in about_original(keys.original, look.config, offline=look.offline):
                yield step.finding(problem.level, "original", problem.text, problem.hint)


def _without_effect(step: Step, keys: EvaluateKeys) -> Iterator[Finding]:
    """What was asked of a task that does not change what is asked or sampled."""
    options = step.parts["task"].options
    asked = {name: getattr(options, name) for name in options.model_fields_set}
    lone = "lm-eval asks once" if keys.task.startswith(LM_EVAL) else ""
    if not getattr(options, "temperature", 0.0):
        lone = lone or "at temperature 0 all completions of a problem are alike"
    if lone and len(asked.get("seeds") or ()) > 1:
        yield step.finding("warning", "seeds", f"{lone}: the first seed alone is used.", "Name one seed.")
    if keys.task.startswith(LM_EVAL):
        for name in UNKNOWN_TO_LM_EVAL:
            if asked.get(name):
                text = "lm-eval's own tasks do not take it: this has no effect."
                yield step.finding("warning", name, text, "Leave it out.")
