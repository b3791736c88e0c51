"""Which plugins there are, what they offer, who owns it: built-ins by name, third parties by entry point.

The only file that uses pluggy's manager. A plugin that fails is reported in `Registry.broken` and stops nothing else; a
name offered twice is an error only for whoever asks for that name.

    RQAT_DISABLE_PLUGINS=rqat_gptq,acme-quant    leaves plugins out, by module or distribution
    RQAT_TRACE_PLUGINS=1                         logs every registration
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import pluggy
from pydantic import ValidationError

from . import hookspecs, keys
from .contracts import Exporter, Objective, Options, Part, Quantizer, Source, Statistic, Task, TaskOptions
from .errors import PluginError, RecipeError, UnknownName, nearest
from .problems import Place, problems_of
from .scheme import Scheme

if TYPE_CHECKING:
    import typer

BUILTIN = (
    "rqat_rtn",
    "rqat_gptq",
    "rqat_awq",
    "rqat_sft",
    "rqat_kd",
    "rqat_grpo",
    "rqat_data",
    "rqat_arith",
    "rqat_math",
    "rqat_compressed_tensors",
    "rqat_gptq_format",
    "rqat_bf16",
)
"""Modules of the plugins that come with rqat; their names are reserved."""

GROUP = "rqat"
"""Entry-point group of third-party plugins."""

Kind = Literal["quantizer", "objective", "source", "task", "exporter"]

KINDS: dict[Kind, tuple[type, type[Options], frozenset[str]]] = {
    "quantizer": (Quantizer, Options, frozenset(keys.QuantizeKeys.model_fields)),
    "objective": (Objective, Options, frozenset(keys.TrainKeys.model_fields)),
    "source": (Source, Options, frozenset({*keys.CalibrationKeys.model_fields, *Part.model_fields})),
    "task": (Task, TaskOptions, frozenset(keys.EvaluateKeys.model_fields)),
    "exporter": (Exporter, Options, frozenset(keys.ExportKeys.model_fields)),
}
"""For every kind: its base class, the base of its options, and the recipe's own keys, which no option may take."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_LOAD = re.compile(r"(\.[A-Za-z_][\w.]*)?:[A-Za-z_]\w*")

log = logging.getLogger("rqat.plugins")


@dataclass(frozen=True)
class Card:
    """What is known of one quantizer, objective, source, task or exporter without importing its class.

    Attributes are those of `hookspecs.Register`, and:
        module: name of the plugin's module.
        owner: distribution the plugin came with; "rqat" for built-ins.
        version: of that distribution.
    """

    kind: Kind
    name: str
    options: type[Options]
    load: str
    module: str
    owner: str
    version: str
    summary: str = ""
    paper: str = ""
    teacher: bool = False
    rollouts: bool = False
    needs: tuple[Statistic, ...] = ()
    domain: str = ""
    refuses: Callable[[Scheme], str] | None = None

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' ({self.module}, {self.owner} {self.version})"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin, or a part of one, that could not be used.

    Attributes:
        name: its module.
        owner: its distribution.
        error: what went wrong, in one line.
    """

    name: str
    owner: str
    error: str

    def __str__(self) -> str:
        return f"{self.name} ({self.owner}): {self.error}"


@dataclass
class Registry:
    """Everything that plugins offer.

    Attributes:
        broken: plugins that could not be used.
        disabled: modules left out by RQAT_DISABLE_PLUGINS.
    """

    broken: list[BrokenPlugin] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    _cards: dict[tuple[str, str], list[Card]] = field(default_factory=dict)
    _commands: list[tuple[str, str, Callable[[Any], None]]] = field(default_factory=list)

    @classmethod
    def discover(cls) -> Registry:
        """Imports every plugin's light module and collects what it offers."""
        registry = cls()
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        for owner, release, module in registry._modules():
            registry._add(manager, module, owner, release)
        return registry

    def cards(self, kind: Kind) -> list[Card]:
        """What can be used of one kind, by name; names offered twice are left out (see `clashes`)."""
        return [found[0] for (k, _), found in sorted(self._cards.items()) if k == kind and len(found) == 1]

    @property
    def clashes(self) -> list[tuple[Card, ...]]:
        """Cards that share a kind and a name."""
        return [tuple(found) for found in self._cards.values() if len(found) > 1]

    def card(self, kind: Kind, name: str, where: object = "") -> Card:
        """The card called `name`.

        Args:
            where: file, line and key the name was read from.

        Raises:
            UnknownName: nobody registered it.
            PluginError: more than one plugin registered it.
        """
        found = self._cards.get((kind, name), [])
        if len(found) == 1:
            return found[0]
        if found:
            place = f"{where}: " if str(where) else ""
            owners = " and ".join(f"{card.module} ({card.owner} {card.version})" for card in found)
            raise PluginError(
                f"{place}the {kind} '{name}' is offered by {owners}.",
                hint=f"Rename one, or leave one out: RQAT_DISABLE_PLUGINS={found[-1].module}",
            )
        error = UnknownName(name, kind, (card.name for card in self.cards(kind)), where=str(where))
        if self.broken:
            names = ", ".join(dict.fromkeys(broken.name for broken in self.broken))
            error.hint += f" Broken, so perhaps missing here: {names} (`rqat plugins` says why)."
        if self.disabled:
            error.hint += f" Left out by RQAT_DISABLE_PLUGINS: {', '.join(self.disabled)}."
        raise error

    def options(self, card: Card, raw: Mapping[str, Any], where: Place | str = "") -> Options:
        """Validates a part's options, and those of the sources it is made of.

        Raises:
            RecipeError: every problem, each with its place.
        """
        place = where if isinstance(where, Place) else Place({(): where} if where else {})
        try:
            options = card.options.model_validate(dict(raw))
        except ValidationError as error:
            host_keys = KINDS[card.kind][2] if place.keys else ()  # in a recipe they stand beside the options
            raise RecipeError(problems_of(error, card.options, place, also_known=host_keys)) from None
        problems: list[str] = []
        for name, index, part in parts_of(options):
            inside = place.at(name, index)
            try:
                self.options(self.card("source", part.source, inside.at("source")), part.options, inside)
            except RecipeError as error:
                problems += error.problems
            except (UnknownName, PluginError) as error:
                problems.append(str(error))
        if problems:
            raise RecipeError(problems)
        return options

    def make(self, card: Card, options: Options) -> Any:
        """Imports the class behind a card and builds it; a source made of others gets them through `combine`."""
        made = self.load_class(card)(options)
        if card.kind == "source":
            parts = [part for _, _, part in parts_of(options)]
            if parts:
                made.combine([self._make_part(part) for part in parts])
        return made

    def load_class(self, card: Card) -> type:
        """Imports the class behind a card.

        Raises:
            PluginError: it does not import, is not there, or is not of the card's kind.
        """
        submodule, _, class_name = card.load.partition(":")
        plugin = sys.modules[card.module]
        if submodule and not hasattr(plugin, "__path__"):
            raise PluginError(
                f"{card} says load='{card.load}', but {card.module} is a single file.",
                hint=f"Write load=':{class_name}', or make {card.module} a package.",
            )
        try:
            module = importlib.import_module(submodule, card.module) if submodule else plugin
        except Exception as error:
            raise PluginError(
                f"{card} does not import: {_one_line(error)}.",
                hint=f"Try: python -c 'import {card.module}{submodule}'",
            ) from error
        found = getattr(module, class_name, None)
        base = KINDS[card.kind][0]
        if found is None:
            classes = [name for name, _ in inspect.getmembers(module, inspect.isclass)]
            near = nearest(class_name, classes)
            hint = f"Did you mean '{near}'?" if near else ""
            raise PluginError(
                f"{card} says load='{card.load}', but {module.__name__} has no '{class_name}'.", hint=hint
            )
        if not (inspect.isclass(found) and issubclass(found, base)):
            raise PluginError(
                f"{card}: '{class_name}' is not a rqat.{base.__name__}.", hint="Derive it from that class."
            )
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        if missing:
            raise PluginError(f"{card}: '{class_name}' does not implement {', '.join(missing)}.")
        if issubclass(found, Quantizer) and frozenset(card.needs) != found.needs:
            raise PluginError(
                f"{card} registers needs={sorted(card.needs)}, but its class says {sorted(found.needs)}.",
                hint="Make the two equal.",
            )
        return found

    def add_commands(self, app: typer.Typer) -> None:
        """Lets plugins add their commands to the command line; one that fails goes to `broken`."""
        from typer.main import get_command

        for module, owner, function in self._commands:
            commands, groups = len(app.registered_commands), len(app.registered_groups)
            try:
                function(app)
                made = get_command(app)  # reads every signature: a wrong one would end every other command too
                if len(getattr(made, "commands", ())) < len(app.registered_commands) + len(app.registered_groups):
                    raise PluginError("a command of that name exists already")
            except Exception as error:
                del app.registered_commands[commands:], app.registered_groups[groups:]
                self._report(module, owner, f"register_commands: {_one_line(error)}")

    # -- discovery

    def _modules(self) -> Iterator[tuple[str, str, ModuleType]]:
        """Owner, version and module of every plugin that imports and is not disabled."""
        disabled = {_normal(name) for name in os.environ.get("RQAT_DISABLE_PLUGINS", "").split(",") if name.strip()}
        own_version = importlib.import_module("rqat").__version__
        for name in BUILTIN:
            if _normal(name) in disabled:
                self.disabled.append(name)
                continue
            module = self._import(name, "rqat", lambda name=name: importlib.import_module(name))  # type: ignore[misc]
            if module is not None:
                yield "rqat", own_version, module
        seen = set(BUILTIN)
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.value, entry.name)):
            owner, release = _owner(entry)
            if {_normal(owner), _normal(entry.module), _normal(entry.name)} & disabled:
                self.disabled.append(entry.module)
            elif entry.value in seen:
                if entry.value in BUILTIN and _normal(owner) != "rqat":
                    self._report(entry.value, owner, "this module name is reserved for a plugin that comes with rqat")
            else:
                seen.add(entry.value)
                module = self._import(entry.value, owner, entry.load)
                if module is not None:
                    yield owner, release, module

    def _import(self, name: str, owner: str, load: Callable[[], Any]) -> ModuleType | None:
        try:
            module = load()
        except (Exception, SystemExit) as error:
            self._report(name, owner, _one_line(error))
            return None
        if isinstance(module, ModuleType):
            return module
        self._report(name, owner, "its entry point does not name a module")
        return None

    def _add(self, manager: pluggy.PluginManager, module: ModuleType, owner: str, release: str) -> None:
        """Registers one plugin and calls its hooks, each by itself, so that a failure has a name."""
        name = module.__name__
        try:
            manager.register(module, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            if manager.has_plugin(name):
                manager.unregister(name=name)
            self._report(name, owner, _one_line(error))
            return
        callers = sorted(manager.get_hookcallers(module) or [], key=lambda caller: caller.name)
        if not callers:
            self._report(name, owner, "it implements no hook of rqat")
        for caller in callers:
            if caller.spec is None:
                known = [hook for hook in vars(hookspecs) if hook.startswith("register_")]
                near = nearest(caller.name, known)
                ending = f"did you mean '{near}'?" if near else f"known: {', '.join(known)}"
                self._report(name, owner, f"'{caller.name}' is not a hook; {ending}")
                manager.unregister(name=name)
                return
        for caller in callers:
            for implementation in (found for found in caller.get_hookimpls() if found.plugin is module):
                self._call(caller.name, implementation, module, owner, release)

    def _call(self, hook: str, implementation: Any, module: ModuleType, owner: str, release: str) -> None:
        if hook == "register_commands":
            self._commands.append((module.__name__, owner, implementation.function))
            return
        kind: Kind = hook.removeprefix("register_").removesuffix("s")  # type: ignore[assignment]

        def register(
            name: str, *, load: str, options: type[Options] | None = None, needs: Sequence[Statistic] = (), **facts: Any
        ) -> None:
            chosen = KINDS[kind][1] if options is None else options
            card = Card(kind, name, chosen, load, module.__name__, owner, release, needs=tuple(needs), **facts)
            self._offer(_checked(card))

        try:
            implementation.function(*([register] if implementation.argnames else []))
        except Exception as error:
            self._report(module.__name__, owner, f"{hook}: {_one_line(error)}")

    def _offer(self, card: Card) -> None:
        self._cards.setdefault((card.kind, card.name), []).append(card)
        if os.environ.get("RQAT_TRACE_PLUGINS") == "1":
            log.warning("%s load=%s options=%s", card, card.load, card.options.__name__)

    def _make_part(self, part: Part) -> Source:
        card = self.card("source", part.source)
        return self.make(card, self.options(card, part.options))

    def _report(self, name: str, owner: str, error: str) -> None:
        self.broken.append(BrokenPlugin(name, owner, error))


def _checked(card: Card) -> Card:
    """Refuses a card that could not be used later."""
    _, base, host_keys = KINDS[card.kind]
    if not (isinstance(card.name, str) and _NAME.fullmatch(card.name)):
        raise PluginError(f"{card.name!r} is not a name: use lower-case letters, digits, '-', '_' and '.'")
    if not (isinstance(card.load, str) and _LOAD.fullmatch(card.load)):
        raise PluginError(f"'{card.name}' says load={card.load!r}; write '.submodule:Class' or ':Class'")
    if not (inspect.isclass(card.options) and issubclass(card.options, base)):
        raise PluginError(f"options of '{card.name}' are not a subclass of rqat.{base.__name__}")
    unknown = sorted(set(card.needs) - set(get_args(Statistic)))
    if unknown:
        raise PluginError(
            f"'{card.name}' needs {', '.join(unknown)}; known statistics: {', '.join(get_args(Statistic))}"
        )
    taken = sorted(host_keys & set(card.options.model_fields))
    if taken:
        raise PluginError(f"option {', '.join(map(repr, taken))} of '{card.name}' is a key of the recipe itself")
    return card


def parts_of(options: Options) -> Iterator[tuple[str, int, Part]]:
    """Every `rqat.Part` in a source's options, with the option's name and its index."""
    for name, value in options:
        if isinstance(value, (list, tuple)):
            yield from ((name, index, part) for index, part in enumerate(value) if isinstance(part, Part))


def _owner(entry: EntryPoint) -> tuple[str, str]:
    """Distribution and version behind an entry point."""
    if entry.dist is None:
        return "unknown", "0"
    try:
        return entry.dist.name, version(entry.dist.name)
    except PackageNotFoundError:
        return entry.dist.name, "0"


def _normal(name: str) -> str:
    """A distribution's or module's name, spelled one way."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _one_line(error: BaseException) -> str:
    """Type and message of an exception, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
