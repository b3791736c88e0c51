"""Recipe + registry -> Plan: which steps, in which order, with which plugins, every default filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from pydantic import ValidationError

from . import facts as step_facts
from .contracts import Options, TaskOptions
from .errors import RecipeError, RqatError, UnknownName
from .facts import difference
from .grids import scheme_problems
from .keys import EvaluateKeys, Keys, ModelKeys, PluginKeys, Recipe, RewardKeys, TrainKeys
from .problems import Keys as KeyPath
from .problems import Place, problems_of
from .recipe import LoadedRecipe, built_recipe
from .registry import Card, Kind, Registry, parts_of
from .scheme import DEFAULT, Scheme, Schemes
from .storage import fingerprint_of

__all__ = ["BASE", "LM_EVAL", "Plan", "Stage", "Step", "Use", "build_plan", "difference", "eval_plan", "quantize_plan"]

Stage = Literal["calibrate", "quantize", "train", "gate", "export", "evaluate"]

BASE = "bf16"
"""The variant of the model as it was before quantization."""

REWARDS = {"correct": RewardKeys()}
"""What an objective is trained on when its recipe names no rewards."""

LM_EVAL = "lm-eval:"
"""Prefix of a task that lm-eval provides and no plugin: `lm-eval:gsm8k`."""


@dataclass(frozen=True)
class Use:
    """A part with its validated options.

    Attributes:
        parts: of a source made of others: those, with their weights, in order; of an objective that is trained on
            rewards: the rewards, with their weights, in order.
    """

    card: Card
    options: Options
    parts: tuple[tuple[Use, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """One unit of work, done by `rqat.stages.<stage>.run.run(job, step)`, in a folder of its own.

    Attributes:
        name: folder name, "04-train-kd".
        stage: which stage module runs it.
        variant: name of the model this step makes or evaluates: "bf16", a quantizer's or an objective's name.
        settings: the recipe's keys for it.
        parts: plugins it uses, by role: "source", "quantizer", "objective", "task", "exporter". A task of lm-eval's own
            ("lm-eval:gsm8k") has none; its settings' extras are fields of `rqat.TaskOptions`.
        inputs: names of earlier steps, by role: "calibration" (of quantize), "gate" (of train, when one stands before
            it), "start" (the quantized model to begin from, of train, gate, export, evaluate; none for "bf16").
    """

    name: str
    stage: Stage
    variant: str
    settings: Keys | PluginKeys
    parts: dict[str, Use] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know, before torch is imported.

    Attributes:
        recipe: with every default filled in.
        scheme: of every layer.
        steps: in order.
        place: where the recipe's values were written, for messages.
    """

    recipe: Recipe
    scheme: Schemes
    steps: tuple[Step, ...]
    place: Place = field(default_factory=Place, compare=False)

    @property
    def model(self) -> ModelKeys:
        """The model to compress."""
        return self.recipe.model

    @property
    def variants(self) -> list[str]:
        """Every model of this plan, in order of making: "bf16", quantizers, objectives."""
        return [BASE, *dict.fromkeys(step.variant for step in self.steps if step.stage in ("quantize", "train"))]

    def step(self, name: str) -> Step:
        """The step called `name`."""
        return next(step for step in self.steps if step.name == name)

    def facts(self, step: Step) -> dict[str, Any]:
        """Everything that decides the result of a step, as JSON: the fingerprint is its hash (see `storage`)."""
        return step_facts.facts_of(self, step)

    def fingerprint(self, step: Step) -> str:
        """Hex digest of `facts`."""
        return fingerprint_of(self.facts(step))


def build_plan(loaded: LoadedRecipe, registry: Registry) -> Plan:
    """Turns a recipe into steps.

    Raises:
        RecipeError: every name nobody registered, every wrong option, every contradiction, with file and line.
    """
    return _Builder(loaded, registry).plan()


def quantize_plan(
    registry: Registry,
    model: str | ModelKeys,
    method: str,
    *,
    scheme: str | Mapping[str, str] = "w2g128",
    calibration: str | Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    export: str | None = "compressed-tensors",
    evaluate: Sequence[str | Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
    name: str = "quantize",
    flags: Mapping[KeyPath, str] | None = None,
) -> Plan:
    """The plan of `rqat quantize`: calibrate, quantize, export, and evaluate if asked; no training.

    Args:
        calibration: a source's name, or the `calibration` mapping of a recipe.
        options: the quantizer's.
        overrides: `key=value`, as `--set` takes them.
        flags: what the command calls each value in its messages, beyond the defaults below.
    """
    data: dict[str, Any] = {
        "name": name,
        "model": model if isinstance(model, str) else model.model_dump(),
        "scheme": scheme if isinstance(scheme, str) else dict(scheme),
        "calibration": dict(calibration) if isinstance(calibration, Mapping) else calibration,
        "quantize": {"method": method, **(options or {})},
        "export": export,
        "evaluate": list(evaluate),
    }
    named: dict[KeyPath, str] = {
        ("model",): "MODEL",
        ("scheme",): "--scheme",
        ("calibration",): "--calibration",
        ("calibration", "source"): "--calibration",
        ("quantize", "method"): "--method",
        ("export", "format"): "--format",
    }
    return build_plan(built_recipe(data, named | dict(flags or {}), overrides), registry)


def eval_plan(
    registry: Registry, model: str | ModelKeys, tasks: Sequence[str | Mapping[str, Any]], *, name: str = "eval"
) -> Plan:
    """The plan of `rqat eval`: tasks on a model as it is (variant "bf16"), nothing else."""
    data = {
        "name": name,
        "model": model if isinstance(model, str) else model.model_dump(),
        "quantize": "rtn",
        "export": None,
        "evaluate": [{"variants": [BASE], **({"task": task} if isinstance(task, str) else task)} for task in tasks],
    }
    flags: dict[KeyPath, str] = {("evaluate", index, "task"): "TASK" for index in range(len(tasks))}
    builder = _Builder(built_recipe(data, flags | {("model",): "MODEL"}), registry)
    plan = builder.plan()
    return replace(plan, steps=_numbered([step for step in builder.steps if step.stage == "evaluate"]))


class _Builder:
    """One walk over a recipe, collecting steps and problems; steps get their numbers at the end.

    Attributes:
        made: for every variant but "bf16", the step that makes it.
    """

    def __init__(self, loaded: LoadedRecipe, registry: Registry) -> None:
        self.recipe, self.place, self.registry = loaded.recipe, loaded.place, registry
        self.steps: list[Step] = []
        self.problems: list[str] = []
        self.made: dict[str, str] = {}

    def plan(self) -> Plan:
        recipe, place = self.recipe, self.place
        scheme = self._scheme()
        if not re.fullmatch(r"\w[\w.-]*", recipe.name):
            allowed = "it names a folder: letters, digits, '.', '_' and '-'"
            self.problems.append(f"{place.at('name')}: '{recipe.name}' cannot be a name; {allowed}.")
        last = self._quantize()
        for index, train in enumerate(recipe.train):
            last = self._train(train, place.at("train", index), last)
        if recipe.export is not None:
            use = self._use("exporter", recipe.export.format, recipe.export.options, place.at("export"), "format")
            self._add("export", "export", last, recipe.export, {"exporter": use}, {"start": self.made[last]})
        for index, evaluate in enumerate(recipe.evaluate):
            self._evaluate(evaluate, place.at("evaluate", index))
        if self.problems or scheme is None:
            raise RecipeError(list(dict.fromkeys(self.problems)))
        return Plan(recipe, scheme, _numbered(self.steps), place)

    def _scheme(self) -> Schemes | None:
        """The schemes of all layers; None, with every reason among the problems, when something is wrong."""
        given, place = self.recipe.scheme, self.place.at("scheme")
        spelled = {DEFAULT: given} if isinstance(given, str) else given
        before = len(self.problems)
        if DEFAULT not in spelled:
            self.problems.append(f"{place}: the mapping has no default; add `{DEFAULT}: w2g128`.")
        read: dict[str, Scheme] = {}
        for key, text in spelled.items():
            where = place if isinstance(given, str) else place.at(key)
            try:
                read[key] = Scheme.parse(text, where=str(where))
                self.problems += scheme_problems(self.registry, read[key], where)
            except RqatError as error:
                self.problems.append(str(error))
        if len(self.problems) > before:
            return None
        return Schemes(default=read.pop(DEFAULT), patterns=tuple(read.items()))

    def _quantize(self) -> str:
        """Adds calibration and every quantizer; returns the variant that is trained and exported."""
        calibration = ""
        if self.recipe.calibration is not None:
            rows = self.recipe.calibration
            source = self._use("source", rows.source, rows.options, self.place.at("calibration"), "source")
            calibration = self._add("calibrate", "calibrate", BASE, rows, {"source": source}, {})
        entries = [(self.recipe.quantize, self.place.at("quantize"))]
        entries += [(keys, self.place.at("compare", index)) for index, keys in enumerate(self.recipe.compare)]
        for keys, place in entries:
            use = self._use("quantizer", keys.method, keys.options, place, "method")
            needs = bool(use and use.card.needs)
            if needs and not calibration:
                by_flag = str(place.at("method")).startswith("--")
                wanted = "give --calibration SOURCE" if by_flag else "add `calibration: {source: ...}`"
                self.problems.append(f"{place.at('method')}: '{keys.method}' looks at data; {wanted}.")
            variant = self._new_variant(keys.method)
            inputs = {"calibration": calibration} if needs else {}
            self.made[variant] = self._add(f"quantize-{variant}", "quantize", variant, keys, {"quantizer": use}, inputs)
        if not any("calibration" in step.inputs for step in self.steps):
            self.steps = [step for step in self.steps if step.stage != "calibrate"]
        return next(iter(self.made))

    def _train(self, keys: TrainKeys, place: Place, start: str) -> str:
        """Adds a training, and before it the gate if there is to be one; returns its variant."""
        variant = self._new_variant(keys.objective)
        objective = self._use("objective", keys.objective, keys.options, place, "objective")
        source = self._use("source", keys.data.source, keys.data.options, place.at("data"), "source")
        task = self._use("task", keys.task, {}, place, "task") if keys.task is not None else None
        if keys.teacher is not None and objective is not None and not objective.card.teacher:
            learners = ", ".join(card.name for card in self.registry.cards("objective") if card.teacher)
            wanted = f"leave it out, or use one that does: {learners}"
            self.problems.append(f"{place.at('teacher')}: '{keys.objective}' learns from no teacher; {wanted}.")
        inputs = {"start": self.made[start]}
        if objective is not None:
            objective = replace(objective, parts=self._rewards(keys, place, objective.card))
        if objective is not None and objective.card.graded:
            if keys.task is None:
                known = ", ".join(card.name for card in self.registry.cards("task"))
                wanted = f"add `task: ...`, known: {known}"
                self.problems.append(f"{place}: '{keys.objective}' is rewarded by a task's grader; {wanted}.")
            gate = self._add(f"gate-{variant}", "gate", variant, keys, {"source": source, "task": task}, inputs)
            inputs = inputs | {"gate": gate}
        parts = {"objective": objective, "source": source, "task": task}
        self.made[variant] = self._add(f"train-{variant}", "train", variant, keys, parts, inputs)
        return variant

    def _rewards(self, keys: TrainKeys, place: Place, card: Card) -> tuple[tuple[Use, float], ...]:
        """The rewards an objective is trained on, with their weights."""
        if not card.graded:
            if keys.rewards is not None:
                graded = ", ".join(card.name for card in self.registry.cards("objective") if card.graded)
                wanted = f"leave it out, or use one that is: {graded}"
                self.problems.append(f"{place.at('rewards')}: '{card.name}' is not trained on rewards; {wanted}.")
            return ()
        asked = REWARDS if keys.rewards is None else keys.rewards
        if not any(reward.weight for reward in asked.values()):
            self.problems.append(f"{place.at('rewards')}: every weight is 0, so nothing would be learned.")
        found = [
            (self._use("reward", name, reward.options, place.at("rewards", name)), reward.weight)
            for name, reward in asked.items()
        ]
        return tuple((use, weight) for use, weight in found if use is not None)

    def _evaluate(self, keys: EvaluateKeys, place: Place) -> None:
        known = [BASE, *self.made]
        for index, variant in enumerate(keys.variants or ()):
            if variant not in known:
                unknown = UnknownName(variant, "model of this recipe", known, where=str(place.at("variants", index)))
                self.problems.append(str(unknown))
        parts: dict[str, Use | None] = {}
        if keys.task.startswith(LM_EVAL):
            self._check_lm_eval(keys, place)
        else:
            parts["task"] = self._use("task", keys.task, keys.options, place, "task")
        label = re.sub(r"[^\w.-]+", "-", keys.task)
        for variant in known:
            if keys.variants is None or variant in keys.variants:
                inputs = {"start": self.made[variant]} if variant in self.made else {}
                self._add(f"evaluate-{label}-{variant}", "evaluate", variant, keys, parts, inputs)

    def _check_lm_eval(self, keys: EvaluateKeys, place: Place) -> None:
        try:
            TaskOptions.model_validate(keys.options)
        except ValidationError as error:
            self.problems += problems_of(error, TaskOptions, place, also_known=EvaluateKeys.model_fields)

    def _use(self, kind: Kind, name: str, raw: Mapping[str, Any], place: Place, name_key: str = "") -> Use | None:
        """A part with its options; None, with the reasons among the problems, when something is wrong."""
        try:
            card = self.registry.card(kind, name, place.at(name_key) if name_key else place)
            return self._with_parts(Use(card, self.registry.options(card, raw, place)))
        except RecipeError as error:
            self.problems += error.problems
        except RqatError as error:
            self.problems.append(str(error))
        return None

    def _with_parts(self, use: Use) -> Use:
        parts = []
        for _, _, part in parts_of(use.options):
            card = self.registry.card("source", part.source)
            parts.append((self._with_parts(Use(card, self.registry.options(card, part.options))), part.weight))
        return replace(use, parts=tuple(parts))

    def _new_variant(self, name: str) -> str:
        """`name` without its plugin's, or `name-2` and so on when there is such a variant already."""
        return _unused(name.rpartition(":")[2], [BASE, *self.made])

    def _add(
        self,
        name: str,
        stage: Stage,
        variant: str,
        settings: Keys | PluginKeys,
        parts: Mapping[str, Use | None],
        inputs: Mapping[str, str],
    ) -> str:
        """Adds a step and returns its name."""
        name = _unused(name, [step.name for step in self.steps])
        known = {role: use for role, use in parts.items() if use is not None}
        self.steps.append(Step(name, stage, variant, settings, known, dict(inputs)))
        return name


def _unused(name: str, used: Sequence[str]) -> str:
    numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(candidate for candidate in numbered if candidate not in used)


def _numbered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Puts 01-, 02-, ... in front of every step's name, also where other steps refer to it."""
    width = max(2, len(str(len(steps))))
    names = {step.name: f"{number:0{width}}-{step.name}" for number, step in enumerate(steps, 1)}
    return tuple(
        replace(step, name=names[step.name], inputs={role: names[name] for role, name in step.inputs.items()})
        for step in steps
    )
