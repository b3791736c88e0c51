"""Recipe + registry -> Plan: which steps, in which order, with which plugins, every default filled in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import __version__
from .cards import Card, Kind
from .contracts.data import FILES
from .contracts.options import graders_of, parts_of, starts_of
from .errors import RecipeError, RqatError, UnknownName
from .facts import card_facts, model_facts, part_facts, settings_facts
from .grids import grid_cards, has_zeros, scheme_problems
from .keys import Keys, ModelKeys, PluginKeys
from .model.config import ModelConfig
from .problems import Place
from .recipe import LoadedRecipe, RecipeKeys
from .registry import Registry
from .scheme import DEFAULT, UNIFORM, Scheme, Schemes
from .stage import BASE, Making, Stage, Step, Use, bare_name
from .stages import stages
from .storage import fingerprint_of, is_name


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know, before torch is imported.

    Attributes:
        recipe: with every default filled in.
        scheme: of every layer.
        steps: in order.
        place: where the recipe's values were written, for messages.
        unread: steps that sections of the recipe ask for and no other step needs; they are left out.
    """

    recipe: RecipeKeys
    scheme: Schemes
    steps: tuple[Step, ...]
    place: Place = field(default_factory=Place, compare=False)
    unread: tuple[Step, ...] = field(default=(), compare=False)
    _known: dict[str, tuple[ModelConfig, dict[str, Scheme]]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def model(self) -> ModelKeys:
        """The model to compress."""
        return self.recipe.model

    @property
    def variants(self) -> list[str]:
        """Every model of this plan, in order of making: "bf16", quantizers, objectives."""
        return [BASE, *dict.fromkeys(step.variant for step in self.steps if stages()[step.stage].makes_model)]

    @property
    def spelled(self) -> str:
        """The scheme, and what stages say beside it, for people to read."""
        told = self.scheme.brief
        for stage in stages().values():
            told = stage.told_scheme(self.recipe, told)
        return told

    def step(self, name: str) -> Step:
        """The step called `name`."""
        return next(step for step in self.steps if step.name == name)

    def checkpoints(self, folder: Path) -> list[Path]:
        """Where a run in `folder` leaves checkpoints for others to load."""
        made = ((step.name, stages()[step.stage].checkpoint) for step in self.steps)
        return [folder / name / inside for name, inside in made if inside]

    def schemes(self, step: Step, config: ModelConfig) -> dict[str, Scheme]:
        """The scheme of every quantized layer of the model that a step works on or makes; empty where none is.

        Raises:
            ModelError: the layers cannot be quantized as asked.
        """
        of, known = self._known.get(step.name, (None, {}))
        if of is not config:  # every step and check asks, and of a budget all widths of all layers are looked at
            known = stages()[step.stage].schemes(step, self, config)
            self._known[step.name] = config, known
        return dict(known)

    def known_schemes(self, step: Step, config: ModelConfig | None) -> dict[str, Scheme] | None:
        """As `schemes`; None where they are not known, which the step that is at fault tells."""
        try:
            return None if config is None else self.schemes(step, config)
        except RqatError:
            return None

    def has_zeros(self, schemes: Iterable[Scheme]) -> bool:
        """Whether layers of any of these schemes have zero points to train."""
        return any(map(has_zeros, dict.fromkeys(schemes)))

    def facts(self, step: Step, known: dict[str, str] | None = None) -> dict[str, Any]:
        """Everything that decides the result of a step, as JSON: the fingerprint is its hash (see `storage`).

        Args:
            known: fingerprints by steps' names that were worked out just now; those of what the step starts from are
                added. None works them out anew.
        """
        known = {} if known is None else known
        stage = stages()[step.stage]
        model = model_facts(self.model)
        facts: dict[str, Any] = {
            "rqat": __version__,
            "stage": step.stage,
            "model": model if stage.of_model == "all" else {stage.of_model: model[stage.of_model]},
            "settings": settings_facts(step),
            "parts": {role: part_facts(use) for role, use in sorted(step.parts.items()) if role not in stage.beside},
            "inputs": {
                role: self.fingerprint(self.step(name), known)
                for role, name in sorted(step.inputs.items())
                if role.rpartition("-")[2] not in stage.beside
            },
        }
        if stage.of_scheme:
            registry, brought = Registry.current(), self.brings_scheme(step)
            # Layers that were there before count by the step that brought them, and their grids, but for this one.
            grids = [registry.card("grid", UNIFORM)] if brought else grid_cards(registry, self.scheme.different)
            facts["scheme"] = {"grids": [card_facts(card) for card in grids]}
            facts["scheme"] |= {} if brought else self.scheme.facts()
        return facts

    def brings_scheme(self, step: Step) -> bool:
        """Whether the model that a step works on has schemes of its own, of which the recipe's says nothing."""
        return stages()[step.stage].brings_scheme(step, self)

    def budget(self, step: Step, config: ModelConfig) -> int | None:
        """Bytes that the model a step works on or makes has to keep within; None where there is no budget."""
        return stages()[step.stage].budget(step, self, config)

    def fingerprint(self, step: Step, known: dict[str, str] | None = None) -> str:
        """Hex digest of `facts`, as which it is added to `known`."""
        known = {} if known is None else known
        if step.name not in known:
            known[step.name] = fingerprint_of(self.facts(step, known))
        return known[step.name]

    def fingerprints(self) -> dict[str, str]:
        """Of every step by its name; quicker than one by one, since each holds those of the steps it starts from."""
        known: dict[str, str] = {}
        return {step.name: self.fingerprint(step, known) for step in self.steps}


def build_plan(loaded: LoadedRecipe, registry: Registry, only: Callable[[Making], None] | None = None) -> Plan:
    """Turns a recipe into steps.

    Args:
        only: adds the steps, in place of those that the stages add for a whole recipe.

    Raises:
        RecipeError: every name nobody registered, every wrong option, every contradiction, with file and line.
    """
    return _Making(loaded, registry).plan(only)


class _Making:
    """One walk over a recipe, collecting steps and problems; see `rqat.stage.Making`.

    Steps get their numbers at the end.
    """

    def __init__(self, loaded: LoadedRecipe, registry: Registry) -> None:
        self._loaded, self._registry = loaded, registry
        self._steps: list[Step] = []
        self._problems: list[str] = []
        self.made: dict[str, str] = {}
        self.last = BASE

    def plan(self, only: Callable[[Making], None] | None = None) -> Plan:
        """All stages' steps, or those that `only` adds.

        Raises:
            RecipeError: see `build_plan`.
        """
        scheme = self._scheme()
        if not is_name(self.recipe.name):
            allowed = "it names a folder: letters, digits, '.', '_' and '-', 100 at most"
            self.problem(f"{self.place.at('name')}: '{self.recipe.name}' cannot be a name; {allowed}.")
        for add in [only] if only else [stage.add for stage in stages().values()]:
            add(self)
        if self._problems or scheme is None:
            raise RecipeError(list(dict.fromkeys(self._problems)))
        used: set[str] = set()
        kept: list[Step] = []
        for step in reversed(self._steps):  # a step's inputs stand before it
            if step.name in used or only or not stages()[step.stage].only_if_used:
                kept.insert(0, step)
                used.update(step.inputs.values())
        unread = [step for step in self._steps if step not in kept and stages()[step.stage].sections]
        return Plan(self.recipe, scheme, numbered(kept), self.place, tuple(unread))

    @property
    def recipe(self) -> RecipeKeys:
        return self._loaded.recipe

    @property
    def place(self) -> Place:
        return self._loaded.place

    def known(self, kind: Kind) -> list[Card]:
        return self._registry.cards(kind)

    def use(self, kind: Kind, keys: PluginKeys, place: Place) -> Use | None:
        return self._use(kind, keys.part, keys.options, place, place.at(keys.named_by))

    def named(
        self, kind: Kind, name: str, place: Place, options: Mapping[str, Any] = MappingProxyType({})
    ) -> Use | None:
        return self._use(kind, name, options, place, place)

    def problem(self, text: str) -> None:
        self._problems.append(text)

    def variant(self, name: str) -> str:
        return _unused(name, [BASE, *self.made])

    def find(self, stage: str) -> str:
        return next((step.name for step in self._steps if step.stage == stage), "")

    def same(self, stage: Stage, settings: Keys | PluginKeys, parts: Mapping[str, Use]) -> str:
        alike = (step for step in self._steps if step.stage == stage.name and step.settings == settings)
        return next((step.name for step in alike if step.parts == parts), "")

    def add(
        self,
        stage: Stage,
        name: str,
        variant: str,
        settings: Keys | PluginKeys,
        place: Place,
        parts: Mapping[str, Use | None],
        inputs: Mapping[str, str],
    ) -> str:
        name = _unused(name, [step.name for step in self._steps])
        known = {role: use for role, use in parts.items() if use is not None}
        self._steps.append(Step(name, stage.name, variant, settings, known, dict(inputs), place))
        return name

    def _scheme(self) -> Schemes | None:
        """The schemes of all layers; None, with every reason among the problems, when something is wrong."""
        given, place = self.recipe.scheme, self.place.at("scheme")
        spelled = {DEFAULT: given} if isinstance(given, str) else given
        before = len(self._problems)
        if DEFAULT not in spelled:
            self.problem(f"{place}: the mapping has no default; add `{DEFAULT}: w2g128`.")
        read: dict[str, Scheme] = {}
        for key, text in spelled.items():
            where = place if isinstance(given, str) else place.at(key)
            try:
                read[key] = Scheme.parse(text, where=str(where))
                self._problems += scheme_problems(self._registry, read[key], where)
            except RqatError as error:
                self.problem(str(error))
        if len(self._problems) > before:
            return None
        return Schemes(default=read.pop(DEFAULT), patterns=tuple(read.items()))

    def _use(self, kind: Kind, name: str, raw: Mapping[str, Any], place: Place, named_at: Place) -> Use | None:
        try:
            card = self._registry.card(kind, name, named_at)
            return self._with_parts(Use(card, self._registry.options(card, raw, place), place=place))
        except RecipeError as error:
            self._problems += error.problems
        except UnknownName as error:
            looks = kind == "source" and (os.sep in name or Path(name).suffix)
            files = (
                f" Files that can be named here end in {', '.join(FILES)}, each with or without .gz." if looks else ""
            )
            self.problem(f"{error}{files}")
        except RqatError as error:
            self.problem(str(error))
        return None

    def _with_parts(self, use: Use) -> Use:
        parts = []
        for _, _, part in parts_of(use.options):
            card = self._registry.card("source", part.source)
            parts.append((self._with_parts(Use(card, self._registry.options(card, part.options))), part.weight))
        for _, start in starts_of(use.options):
            card = self._registry.card("quantizer", start.method)
            parts.append((self._with_parts(Use(card, self._registry.options(card, start.options))), 1.0))
        for _, task in graders_of(use.options):
            card = self._registry.card("task", task)
            parts.append((Use(card, self._registry.options(card, {})), 1.0))
        return replace(use, parts=tuple(parts))


def _unused(name: str, used: Sequence[str]) -> str:
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(candidate for candidate in names if candidate not in used)


def numbered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Puts 01-, 02-, ... in front of every step's name, also where other steps refer to it."""
    width = max(2, len(str(len(steps))))
    names = {step.name: f"{number:0{width}}-{bare_name(step.name)}" for number, step in enumerate(steps, 1)}
    return tuple(
        replace(step, name=names[step.name], inputs={role: names[name] for role, name in step.inputs.items()})
        for step in steps
    )
