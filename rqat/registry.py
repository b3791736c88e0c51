"""What plugins offer, and who owns it: looking parts up, reading their options, building them.

A plugin that fails is reported in `Registry.broken` and stops nothing else. A name that rqat itself offers is rqat's:
a third party that registers it is told, and `plugin:name` reaches its part. A name offered by two third parties is an
error only for whoever asks for that name without saying whose.

    RQAT_TRACE_PLUGINS=1    logs every registration
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pluggy
from pydantic import ValidationError

from . import hookspecs
from .cards import KINDS, Card, Kind, check_class, kind_of, read_options, registrar
from .contracts import Options, Part, Source
from .contracts.options import graders_of, parts_of, starts_of
from .discovery import BrokenPlugin, Discovery, Plugin, one_line
from .errors import PluginError, RecipeError, UnknownName, nearest
from .figures import few
from .problems import Place, problems_of
from .stages import reserved_keys

if TYPE_CHECKING:
    import typer

__all__ = ["BUILTIN", "KINDS", "BrokenPlugin", "Card", "Kind", "Registry"]

BUILTIN = (
    "rqat_uniform",
    "rqat_seq",
    "rqat_rtn",
    "rqat_hqq",
    "rqat_gptq",
    "rqat_gptqmodel",
    "rqat_awq",
    "rqat_block_ap",
    "rqat_sft",
    "rqat_kd",
    "rqat_grpo",
    "rqat_rewards",
    "rqat_data",
    "rqat_traces",
    "rqat_arith",
    "rqat_math",
    "rqat_kl",
    "rqat_livecodebench",
    "rqat_compressed_tensors",
    "rqat_gptq_format",
    "rqat_awq_format",
    "rqat_mlx",
    "rqat_gguf",
    "rqat_bf16",
    "rqat_native",
)
"""Modules of the plugins that come with rqat; their names are reserved."""

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("register_"))
"""Names of all hooks."""

Produced = Sequence[tuple[Card, Options, Path]]
"""Sources by card and options, each with the folder it has written its rows into."""

_MANAGER = pluggy.PluginManager(hookspecs.PROJECT)
_MANAGER.add_hookspecs(hookspecs)

log = logging.getLogger("rqat.plugins")


@dataclass(frozen=True)
class Command:
    """A command, or a group of them, that a plugin adds to `rqat`; `summary` is the first line of its help."""

    name: str
    module: str
    owner: str
    summary: str


@dataclass
class Registry:
    """Everything that plugins offer.

    Attributes:
        broken: plugins, or parts of them, that could not be used.
        disabled: modules left out by RQAT_DISABLE_PLUGINS.
        complaints: what of the environment means nothing, one line each.
        commands: what `add_commands` has added.
    """

    broken: list[BrokenPlugin] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    _cards: dict[tuple[str, str], list[Card]] = field(default_factory=dict)
    _commands: list[tuple[str, str, Callable[[Any], None]]] = field(default_factory=list)
    _told: set[tuple[str, str]] = field(default_factory=set)
    _latest: ClassVar[Registry | None] = None

    @classmethod
    def discover(cls) -> Registry:
        """Imports every plugin's light module and collects what it offers."""
        found = Discovery(BUILTIN)
        registry = cls(found.broken, found.disabled, found.complaints)
        for plugin in found.plugins():
            registry._add(plugin)
        cls._latest = registry
        return registry

    @classmethod
    def current(cls) -> Registry:
        """What was discovered last in this process, for whoever was handed none."""
        return cls._latest or cls.discover()

    def cards(self, kind: Kind) -> list[Card]:
        """What can be used by its bare name, of one kind, by name; names offered twice are left out (see `clashes`)."""
        found = (self._by_bare_name(k, name) for k, name in sorted(self._cards) if k == kind)
        return [card for card in found if card is not None]

    def all_cards(self) -> list[Card]:
        """Every part of every plugin, also those that only `plugin:name` reaches; by kind and name."""
        return [card for kind in KINDS for (k, _), found in sorted(self._cards.items()) if k == kind for card in found]

    @property
    def clashes(self) -> list[tuple[Card, ...]]:
        """Cards of third parties that share a kind and a name."""
        return [tuple(found) for key, found in self._cards.items() if self._by_bare_name(*key) is None]

    @property
    def shadowed(self) -> list[tuple[Card, Card]]:
        """Third parties' cards whose name rqat itself offers, each with rqat's."""
        return [
            (card, own)
            for key, found in self._cards.items()
            if (own := self._by_bare_name(*key)) is not None
            for card in found
            if card is not own
        ]

    def has(self, kind: Kind, name: str) -> bool:
        """Whether anybody offers `name`, or `plugin:name`."""
        return bool(self._matching(kind, name))

    def card(self, kind: Kind, name: str, where: object = "") -> Card:
        """The card called `name`, or `plugin:name`, where the plugin is a module or a distribution.

        Args:
            where: file, line and key the name was read from.

        Raises:
            UnknownName: nobody registered it.
            PluginError: more than one third party registered it, and the name does not say whose is meant.
        """
        found = self._matching(kind, name)
        plugin, _, bare = name.rpartition(":")
        own = None if plugin else self._by_bare_name(kind, bare)
        if own is not None or (plugin and len(found) == 1):
            chosen = own or found[0]
            self._tell_shadowed(chosen, [card for card in found if card is not chosen])
            return chosen
        if found:
            place = f"{where}: " if str(where) else ""
            owners = " and ".join(f"{card.module} ({card.owner} {card.version})" for card in found)
            raise PluginError(
                f"{place}the {kind} '{bare}' is offered by {owners}.",
                hint=f"Say whose: {' or '.join(card.full_name for card in found)}.",
            )
        raise self._unknown(kind, name, str(where))

    def _matching(self, kind: Kind, name: str) -> list[Card]:
        plugin, _, bare = name.rpartition(":")
        return [card for card in self._cards.get((kind, bare), []) if not plugin or card.belongs_to(plugin)]

    def _by_bare_name(self, kind: str, name: str) -> Card | None:
        """Whose a name is: rqat's own part, else the only one; None where third parties share it, or nobody has it."""
        found = self._cards.get((kind, name), [])
        own = [card for card in found if card.owner == "rqat"] or found
        return own[0] if len(own) == 1 else None

    def _tell_shadowed(self, chosen: Card, others: list[Card]) -> None:
        if others and (chosen.kind, chosen.name) not in self._told:
            self._told.add((chosen.kind, chosen.name))
            theirs = " and ".join(f"{card.full_name} ({card.owner} {card.version})" for card in others)
            log.warning("the %s '%s' is rqat's own; there is also %s", chosen.kind, chosen.name, theirs)

    def _unknown(self, kind: Kind, name: str, where: str) -> UnknownName:
        known = [card.name for card in self.cards(kind)]
        known += [card.full_name for clash in self.clashes for card in clash if card.kind == kind]
        known += [card.full_name for card, _ in self.shadowed if card.kind == kind]
        error = UnknownName(name, kind, known, where=where)
        if self.broken:
            broken = few(list(dict.fromkeys(str(one).rstrip(".") for one in self.broken)), 1)
            error.hint += f" Broken, so perhaps missing here: {broken} (see `rqat plugins`)."
        if self.disabled:
            error.hint += f" Left out by RQAT_DISABLE_PLUGINS: {', '.join(self.disabled)}."
        return error

    def options(self, card: Card, raw: Mapping[str, Any], where: Place | str = "") -> Options:
        """Validates a part's options, and those of the sources it is made of.

        Raises:
            RecipeError: every problem, each with its place.
        """
        place = where if isinstance(where, Place) else Place({(): where} if where else {})
        try:
            options = read_options(card, raw, str(place))
        except ValidationError as error:
            host_keys = reserved_keys(card.kind) if place.keys else ()  # in a recipe they stand beside the options
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
        for name, start in starts_of(options):
            try:
                self.options(self.card("quantizer", start.method, place.at(name)), start.options, place.at(name))
            except RecipeError as error:
                problems += error.problems
            except (UnknownName, PluginError) as error:
                problems.append(str(error))
        for name, task in graders_of(options):
            try:
                if self.card("task", task, place.at(name)).compares:
                    problems.append(f"{place.at(name)}: '{task}' compares models; it grades no completion.")
            except (UnknownName, PluginError) as error:
                problems.append(str(error))
        if problems:
            raise RecipeError(problems)
        return options

    def make(self, card: Card, options: Options, produced: Produced = ()) -> Any:
        """Imports the class behind a card and builds it; what is made of sources gets them through `combine`.

        Args:
            produced: for sources that ask for the model, where they have written their rows.
        """
        made = self.load_class(card)(options)
        if card.kind == "source":
            made.folder = next((folder for *own, folder in produced if own == [card, options]), None)
        parts = [part for _, _, part in parts_of(options)]
        if parts:
            made.combine([self._make_part(part, produced) for part in parts])
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
                f"{card} does not import: {one_line(error)}.",
                hint=f"Try: python -c 'import {card.module}{submodule}'",
            ) from error
        found = getattr(module, class_name, None)
        if found is None:
            classes = [name for name, _ in inspect.getmembers(module, inspect.isclass)]
            near = nearest(class_name, classes)
            hint = f"Did you mean '{near}'?" if near else ""
            raise PluginError(
                f"{card} says load='{card.load}', but {module.__name__} has no '{class_name}'.", hint=hint
            )
        check_class(card, found)
        return found

    def add_commands(self, app: typer.Typer) -> None:
        """Lets plugins add their commands to the command line; one that fails goes to `broken`."""
        known = _commands_of(app) if self._commands else {}
        for module, owner, function in self._commands:
            commands, groups = len(app.registered_commands), len(app.registered_groups)
            try:
                function(app)
                made = _commands_of(app)  # reads every signature: a wrong one would end every other command too
                if len(made) < len(app.registered_commands) + len(app.registered_groups):
                    raise PluginError(f"there is a command {_clash(app, commands, known)} already")
            except Exception as error:
                del app.registered_commands[commands:], app.registered_groups[groups:]
                text = f"register_commands: {_command_problem(error)}"
                self.broken.append(BrokenPlugin.of(module, owner, error, text))
            else:
                self.commands += [Command(n, module, owner, made[n]) for n in made if n not in known]
                known = made

    def _add(self, plugin: Plugin) -> None:
        """Calls a plugin's hooks, each by itself, so that a failure has a name and hides nothing else."""
        hooks = 0
        for name, function in sorted(vars(plugin.module).items()):
            # pluggy finds the marks; its `register` would refuse a whole plugin for one hook that is wrong.
            marked = _MANAGER.parse_hookimpl_opts(plugin.module, name)
            if marked is None:
                if name in HOOKS and inspect.isfunction(function):
                    hooks += 1
                    self._report(plugin, f"'{name}' is not marked as a hook: forgot @rqat.hookimpl above it?")
                continue
            hooks += 1
            hook = marked.get("specname") or name
            if hook in HOOKS:
                self._call(hook, function, plugin)
                continue
            near = nearest(hook, HOOKS)
            ending = f"did you mean '{near}'?" if near else f"known: {', '.join(HOOKS)}"
            self._report(plugin, f"'{hook}' is not a hook; {ending}")
        if not hooks:
            classes = inspect.getmembers(plugin.module, inspect.isclass)
            inside = next((name for name, one in classes if {*HOOKS} & {*vars(one)}), "")
            told = f"its hooks are methods of '{inside}': write them as functions of the module" if inside else ""
            self._report(plugin, told or "it implements no hook of rqat")

    def _call(self, hook: str, function: Callable[..., None], plugin: Plugin) -> None:
        (argument,) = getattr(_MANAGER.hook, hook).spec.argnames
        taken = list(inspect.signature(function).parameters)
        if taken != [argument]:
            self._report(plugin, f"{hook}({', '.join(taken)}): a hook of this name takes one argument, '{argument}'")
        elif hook == "register_commands":
            self._commands.append((plugin.module.__name__, plugin.owner, function))
        else:
            owner = (plugin.module.__name__, plugin.owner, plugin.version)
            try:
                function(
                    registrar(
                        hook,
                        owner,
                        self._offer,
                        lambda text: self._report(plugin, f"{hook}: {text}"),
                        reserved_keys(kind_of(hook)),
                    )
                )
            except Exception as error:
                self._report(plugin, error, f"{hook}: {one_line(error)}")

    def _offer(self, card: Card) -> None:
        self._cards.setdefault((card.kind, card.name), []).append(card)
        if os.environ.get("RQAT_TRACE_PLUGINS") == "1":
            log.warning("%s load=%s options=%s", card, card.load, card.options.__name__)

    def _make_part(self, part: Part, produced: Produced) -> Source:
        card = self.card("source", part.source)
        made: Source = self.make(card, self.options(card, part.options), produced)
        return made

    def _report(self, plugin: Plugin, error: str | BaseException, text: str = "") -> None:
        found = BrokenPlugin.of(plugin.module.__name__, plugin.owner, error, text, by_path=plugin.by_path)
        self.broken.append(found)


def _commands_of(app: typer.Typer) -> dict[str, str]:
    """Names of an app's commands and groups, with the first lines of their help."""
    from typer.main import get_command

    if not (app.registered_commands or app.registered_groups):
        return {}
    whole = get_command(app)
    commands = getattr(whole, "commands", {str(whole.name): whole})
    return {name: command.get_short_help_str(100) for name, command in commands.items()}


def _clash(app: typer.Typer, before: int, known: Mapping[str, str]) -> str:
    """The name, among those of an app's commands from number `before` on, that was taken."""
    from typer.main import get_command_name

    names = [one.name or get_command_name(getattr(one.callback, "__name__", "")) for one in app.registered_commands]
    return next((f"'{n}'" for i, n in enumerate(names) if i >= before and n in [*known, *names[:i]]), "of that name")


def _command_problem(error: Exception) -> str:
    """One line; Typer reads the annotations of a command where its module's names are known, and no others."""
    if isinstance(error, NameError) and error.name:
        return (
            f"its annotations name '{error.name}', which Typer cannot find: import it at the top of the module, "
            "or leave out `from __future__ import annotations`"
        )
    return one_line(error)
