"""What a stage is: one kind of work in a run, with its keys, its checks and its needs in one room.

    rqat/stages/<name>/__init__.py    a class derived from `Stage`, and the models of its keys: no torch
    rqat/stages/<name>/run.py         `run(job, step)` does the work in `job.workdir(step)` and returns what the report
                                      tells; `read_ahead(step, look)`, if it is there, tells what is wrong with the data

Recipe, plan, pre-flight and pipeline find the rooms by themselves, in the order of `Stage.order`, and know none by its
name: a new stage is a new folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from .cards import Card, Kind
from .contracts import Command, Level, Options
from .estimate import Needs, Sizes
from .keys import Keys, ModelKeys, PluginKeys
from .model.config import ModelConfig
from .problems import Place
from .scheme import Scheme, Schemes

WATCHED = "watch/"
"""Begins the names of figures in training.jsonl that a comparison found during the training."""

BASE = "bf16"
"""The variant of the model as it was before quantization."""

PRODUCED = "produced"
"""Role of the steps whose rows a step reads through its sources: "produced", "produced-2", ..."""

READ_AHEAD = 2000
"""Rows that are read before a run, at most, to see whether they can be used."""

ORDER: Mapping[Level, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Section:
    """A top-level key of a recipe that a stage brings.

    Attributes:
        key: what it is called.
        model: of its mapping.
        about: one line for the reference; the keys inside have lines of their own.
        many: a list of such mappings.
        default: without the key; `...` where it has to be there. A list is empty without it.
        optional: None may be written.
    """

    key: str
    model: type[Keys] | type[PluginKeys]
    about: str
    many: bool = False
    default: Any = ...
    optional: bool = False


@dataclass(frozen=True)
class Use:
    """A part with its validated options.

    Attributes:
        parts: of a source made of others: those, with their weights, in order, and then the tasks whose graders it
            uses; of a quantizer those it starts from; of an objective that is trained on rewards: the rewards, with
            their weights, in order.
        place: where its options are written.
    """

    card: Card
    options: Options
    parts: tuple[tuple[Use, float], ...] = ()
    place: Place = field(default_factory=Place, compare=False)

    @property
    def teacher(self) -> bool:
        """Whether it, an objective with these options, learns from a teacher."""
        return self.card.has_teacher(self.options)

    @property
    def rewarded(self) -> bool:
        """Whether it, an objective, learns from rewards: from one at least that counts."""
        return any(weight for part, weight in self.parts if part.card.kind == "reward")

    @property
    def sources(self) -> list[tuple[Use, float]]:
        """The sources among its parts, with their weights."""
        return [(part, weight) for part, weight in self.parts if part.card.kind == "source"]

    @property
    def commands(self) -> list[str]:
        """Names of its options that are a command of the user's, which no recipe can name."""
        return [name for name, value in self.options if isinstance(value, Command)]

    def all(self) -> Iterator[Use]:
        """Itself and, at any depth, the parts it is made of."""
        yield self
        for part, _ in self.parts:
            yield from part.all()


@dataclass(frozen=True)
class Step:
    """One unit of work, done by `rqat.stages.<stage>.run.run(job, step)`, in a folder of its own.

    Attributes:
        name: folder name, "04-train-kd".
        stage: which stage runs it.
        variant: name of the model this step makes or evaluates: "bf16", a quantizer's or an objective's name.
        settings: the recipe's keys for it.
        parts: plugins it uses, by role: "source", "quantizer", "objective", "task", "exporter".
        inputs: names of earlier steps, by role: "calibration" (of quantize), "gate" (of train, when one stands before
            it), "start" (the quantized model to begin from, of train, gate, export, evaluate; none for "bf16"),
            "produced" (what its sources wrote with the model).
        place: where the recipe asks for it.
    """

    name: str
    stage: str
    variant: str
    settings: Keys | PluginKeys
    parts: dict[str, Use] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    place: Place = field(default_factory=Place, compare=False)

    @property
    def reads(self) -> list[str]:
        """Names of the steps in which the sources it reads have written their rows."""
        return [name for role, name in self.inputs.items() if role.partition("-")[0] == PRODUCED]

    @property
    def uses(self) -> Iterator[Use]:
        """Its parts, and at any depth those that they are made of."""
        return (use for part in self.parts.values() for use in part.all())

    def place_of(self, use: Use) -> Place:
        """Where one of those is asked for."""
        return use.place if use.place.keys else self.place

    def with_settings(self, settings: Keys | PluginKeys) -> Step:
        """The same step with other keys."""
        return replace(self, settings=settings)

    def finding(self, level: Level, key: str, text: str, hint: str = "") -> Finding:
        """A finding about one of this step's keys, or about all of them ("")."""
        place = self.place.at(*key.split(".")) if key else self.place
        return Finding(level, f"{place}: {text}", hint)


@dataclass(frozen=True)
class Finding:
    """One thing to know before a run.

    Attributes:
        level: an error stops the run; a warning may spoil it; a note is good to know.
        text: what is the matter, with its place; one line.
        hint: what to do about it.
        about: what plans that are alike have in common here, though the text differs in its figures; "" is nothing.
    """

    level: Level
    text: str
    hint: str = ""
    about: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text} {self.hint}".rstrip()


class Planned(Protocol):
    """A plan as a stage sees it; see `rqat.plan.Plan`."""

    @property
    def recipe(self) -> Any: ...

    @property
    def scheme(self) -> Schemes: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...

    @property
    def place(self) -> Place: ...

    @property
    def model(self) -> ModelKeys: ...

    def step(self, name: str) -> Step: ...

    def schemes(self, step: Step, config: ModelConfig) -> dict[str, Scheme]: ...

    def brings_scheme(self, step: Step) -> bool: ...

    def budget(self, step: Step, config: ModelConfig) -> int | None: ...

    def known_schemes(self, step: Step, config: ModelConfig | None) -> dict[str, Scheme] | None: ...

    def has_zeros(self, schemes: Iterable[Scheme]) -> bool: ...


class Making(Protocol):
    """A plan in the making: what a stage adds its steps to.

    Attributes:
        made: for every variant but "bf16", the step that makes it.
        last: the variant that the next stage starts from.
    """

    made: dict[str, str]
    last: str

    @property
    def recipe(self) -> Any:
        """The whole recipe."""

    @property
    def place(self) -> Place:
        """Of the top of the recipe."""

    def known(self, kind: Kind) -> list[Card]:
        """Every part of a kind that can be named."""

    def use(self, kind: Kind, keys: PluginKeys, place: Place) -> Use | None:
        """The part that `keys` name, with its options; None, and a problem, where something is wrong with it."""

    def named(self, kind: Kind, name: str, place: Place, options: Mapping[str, Any] = ...) -> Use | None:
        """A part by its name, written at `place`, with the defaults of its options beside `options`."""

    def problem(self, text: str) -> None:
        """Tells what is wrong with the recipe: a whole line."""

    def variant(self, name: str) -> str:
        """`name`, or `name-2` and so on when there is such a variant already."""

    def find(self, stage: str) -> str:
        """Name of the first step of a stage; "" where there is none."""

    def same(self, stage: Stage, settings: Keys | PluginKeys, parts: Mapping[str, Use]) -> str:
        """Name of the step of a stage that does this very work; "" where there is none."""

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
        """Adds a step and returns its name; the number in front of it comes later."""


class Parts(Protocol):
    """What plugins offer; see `rqat.registry.Registry`."""

    def make(self, use: Use) -> Any:
        """Imports the class of a part and builds it."""

    def known(self, kind: Kind) -> list[Card]:
        """Every part of a kind that can be named."""


@dataclass(frozen=True)
class Look:
    """What a stage may look at before any work is done.

    Attributes:
        plan: the whole plan.
        config: of the model; None when it cannot be read, which pre-flight tells by itself.
        device: "cpu" or "cuda".
        processes: how many work together.
        offline: nothing may be fetched.
        folder: the run folder; None where none is chosen.
        parts: builds what plugins offer; only where data is read.
        tokenizer: loads the model's, which takes seconds.
    """

    plan: Planned
    config: ModelConfig | None = None
    device: str = "cpu"
    processes: int = 1
    offline: bool = False
    folder: Path | None = None
    parts: Parts | None = None
    tokenizer: Callable[[], Any] | None = None


def bare_name(name: str) -> str:
    """A step's name without its number: "train-kd" of "04-train-kd"."""
    number, _, rest = name.partition("-")
    return rest if number.isdigit() and rest else name


class Stage:
    """One kind of work in a run.

    Class attributes:
        name: of its folder.
        order: stages add their steps in ascending order; also that of their sections in a recipe.
        sections: the recipe's keys it brings.
        makes_model: a step of it makes a variant, which is exported and evaluated.
        only_if_used: a step of it that no other needs is left out.
        of_model: what of the model decides its results: all of it, or the tokenizer alone.
        of_scheme: whether the weight grid decides its results.
        beside: roles of parts, and endings of roles of inputs, that cannot change its results: they look on.
        borrows: its parts are those of other steps, which are checked there.
        checkpoint: folder, within a finished step, of a checkpoint for others to load; "" where there is none.
        card: file, within a finished step, that tells of the whole run: written anew when that ends, by `tell` beside
            its work, and no part of the result; "" where there is none.
        title: heading under which the report shows the figures of its steps; "" leaves them out.
        about: a line below it.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    sections: ClassVar[tuple[Section, ...]] = ()
    makes_model: ClassVar[bool] = False
    only_if_used: ClassVar[bool] = False
    of_model: ClassVar[Literal["all", "tokenizer"]] = "all"
    of_scheme: ClassVar[bool] = False
    beside: ClassVar[frozenset[str]] = frozenset()
    borrows: ClassVar[bool] = False
    checkpoint: ClassVar[str] = ""
    card: ClassVar[str] = ""
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""

    def add(self, making: Making) -> None:
        """Adds the steps a recipe asks for."""

    def in_several(self, step: Step) -> bool:
        """Whether a step runs in several processes, where several were started."""
        return False

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """Memory and disk a step takes: an upper bound."""
        return Needs()

    def lighter(self, step: Step, device: str) -> dict[str, Any]:
        """Values of a step's keys, by key, of which each alone makes it take less memory."""
        return {}

    def changed(self, step: Step, key: str, value: Any) -> Step:
        """The step with another value of one of the keys that `lighter` names."""
        return step.with_settings(step.settings.model_copy(update={key: value}))

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """What stands in a step's way, as far as it can be told in a moment."""
        yield from ()

    def schemes(self, step: Step, plan: Planned, config: ModelConfig) -> dict[str, Scheme]:
        """The scheme of every quantized layer of the model a step works on or makes; that of its start if it has one.

        Raises:
            ModelError: the layers cannot be quantized as asked.
        """
        start = step.inputs.get("start")
        return plan.schemes(plan.step(start), config) if start else {}

    def brings_scheme(self, step: Step, plan: Planned) -> bool:
        """Whether the model a step works on or makes has schemes of its own, of which the recipe's says nothing."""
        start = step.inputs.get("start")
        return start is not None and plan.brings_scheme(plan.step(start))

    def budget(self, step: Step, plan: Planned, config: ModelConfig) -> int | None:
        """Bytes that the model a step works on or makes has to keep within; None where schemes say what it takes."""
        start = step.inputs.get("start")
        return plan.budget(plan.step(start), config) if start else None

    def told_scheme(self, recipe: Any, told: str) -> str:
        """The scheme as people are to read it wherever it stands for the whole model, `told` so far."""
        return told

    def label(self, step: Step) -> str:
        """What a step's data is called beside that of others."""
        return step.variant

    def shown(self, step: Step) -> dict[str, Any]:
        """The recipe's own keys as `rqat plan` shows them; a part's name and options have lines of their own."""
        keys = step.settings
        hidden = {keys.named_by} if step.parts else set()
        return {
            key: value
            for key, value in keys.model_dump(mode="json").items()
            if (key in type(keys).model_fields or not step.parts) and key not in hidden
        }
