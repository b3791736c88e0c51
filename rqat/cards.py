"""What is known of a part before its class is imported: its card, and the `register` that makes cards.

Each kind's `register` takes the keywords of its protocol in `hookspecs.py`. A card that cannot be used is one clear
line, and hides neither the plugin's other parts nor anybody else's.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import PydanticSerializationError

from . import hookspecs
from .contracts import (
    Comparison,
    Exporter,
    Grid,
    Objective,
    Options,
    Part,
    Quantizer,
    Reward,
    Source,
    Statistic,
    Task,
    TaskOptions,
    Transform,
)
from .errors import PluginError, RqatError, nearest

Kind = Literal["quantizer", "grid", "transform", "objective", "reward", "source", "task", "exporter"]


class KindFacts(NamedTuple):
    """What belongs to a kind of part.

    Attributes:
        base: the class that a part of this kind derives from.
        options: the class that its options derive from.
        reserved: names no option may have, beside the recipe's own keys where the part is named (see `rqat.stages`).
    """

    base: type
    options: type[Options]
    reserved: frozenset[str] = frozenset()


KINDS: dict[Kind, KindFacts] = {
    "quantizer": KindFacts(Quantizer, Options),
    "grid": KindFacts(Grid, Options),
    "transform": KindFacts(Transform, Options),
    "objective": KindFacts(Objective, Options),
    "reward": KindFacts(Reward, Options, frozenset({"weight"})),
    "source": KindFacts(Source, Options, frozenset(Part.model_fields)),
    "task": KindFacts(Task, TaskOptions),
    "exporter": KindFacts(Exporter, Options),
}

OLD_KEYWORDS = {
    "rollouts": "say writes=True, graded=True",
    "refuses": "let `check` of its options say what cannot be done (`rqat.Options.check`)",
}
"""Keywords of the contract before this one, and what says the same today."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_LOAD = re.compile(r"(\.[A-Za-z_][\w.]*)?:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Card:
    """What is known of one part without importing its class.

    Attributes are what its kind's `register` takes (see `hookspecs.py`), and:
        module: name of the plugin's module.
        owner: distribution the plugin came with; "rqat" for built-ins, the file's name for one given by its path.
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
    needs: tuple[Statistic, ...] = ()
    grids: tuple[str, ...] | None = ("uniform",)
    bits: tuple[int, ...] = (2, 3, 4, 8)
    slower: float = 9.0
    zero_bits: int | None = None
    teacher: bool | tuple[str, ...] = False
    writes: bool = False
    graded: bool = False
    logits: str = "float32"
    domain: str = ""
    model: bool = False
    hooks: bool = False
    compares: tuple[str, ...] = ()
    longest_prompt: int = 0
    embedding: bool = False

    @property
    def full_name(self) -> str:
        """`module:name`, which names this part even where another plugin offers the same name."""
        return f"{self.module}:{self.name}"

    @property
    def class_file(self) -> str:
        """Where its class is written; found without importing it. Empty where there is no such file."""
        submodule = self.load.partition(":")[0]
        if not submodule:
            return str(getattr(sys.modules.get(self.module), "__file__", None) or "")
        try:
            spec = importlib.util.find_spec(submodule, self.module)
        except ImportError:
            return ""
        return str(spec.origin) if spec is not None and spec.origin else ""

    def has_teacher(self, options: Options) -> bool:
        """Whether it, an objective, learns from a teacher when it has these options."""
        named = self.teacher
        return named if isinstance(named, bool) else any(getattr(options, name) for name in named)

    def belongs_to(self, plugin: str) -> bool:
        """Whether `plugin` is the module or the distribution it came with, in any spelling."""
        return spelled(plugin) in (spelled(self.module), spelled(self.owner))

    def facts(self) -> dict[str, Any]:
        """What this kind registers beside name, load, options, summary and paper."""
        common = set(keywords("register"))
        return {name: getattr(self, name) for name in keywords(f"register_{self.kind}s") if name not in common}

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}' ({self.module}, {self.owner} {self.version})"


def spelled(name: str) -> str:
    """A distribution's or module's name, spelled one way."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def kind_of(hook: str) -> Kind:
    """The kind that a hook offers: "quantizer" of `register_quantizers`."""
    return hook.removeprefix("register_").removesuffix("s")  # type: ignore[return-value]


def keywords(hook: str) -> Mapping[str, Any]:
    """Keywords of a hook's `register`, with their defaults (`inspect.Parameter.empty` for none)."""
    protocol = getattr(hookspecs, f"Register{kind_of(hook).capitalize()}" if hook != "register" else "Register")
    parameters = inspect.signature(protocol.__call__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name not in ("self", "name")}


def registrar(
    hook: str,
    plugin: tuple[str, str, str],
    offer: Callable[[Card], None],
    refuse: Callable[[str], None],
    reserved: frozenset[str] = frozenset(),
) -> Callable[..., None]:
    """The `register` that a hook is given.

    Args:
        plugin: its module's name, its distribution and its version.
        offer: is given every card that can be used.
        refuse: is told, in one line, why one cannot.
        reserved: names no option may have, beside those of the kind.
    """
    kind = kind_of(hook)
    registered: set[str] = set()

    def register(*given: Any, **values: Any) -> None:
        try:
            card = _checked(_card(hook, plugin, given, values), reserved)
            if card.name in registered:
                raise PluginError(f"'{card.name}' is registered twice")
            registered.add(card.name)
            offer(card)
        except PluginError as error:
            refuse(error.message)

    register.__name__ = f"register_{kind}"
    return register


def _card(hook: str, plugin: tuple[str, str, str], given: tuple[Any, ...], values: dict[str, Any]) -> Card:
    kind, known = kind_of(hook), keywords(hook)
    if not given and "name" in values:
        given = (values.pop("name"),)
    if len(given) != 1:
        raise PluginError(f"register takes one name and then keywords ({', '.join(known)}), not {len(given)} values")
    name = given[0]
    for word in values:
        if word not in known:
            raise PluginError(_unknown_keyword(word, name, known))
    lacking = [word for word, default in known.items() if default is inspect.Parameter.empty and word not in values]
    if lacking:
        raise PluginError(f"{name!r} lacks {', '.join(f'{word}=' for word in lacking)}")
    for word, default in known.items():
        if isinstance(default, tuple) and values.get(word) is not None:
            values[word] = _listed(name, word, values[word])
        elif word == "teacher" and not isinstance(values.get(word, default), bool):
            values[word] = _options_named(name, values[word], values.get("options") or KINDS[kind].options)
        elif isinstance(default, (str, bool)) and not isinstance(values.get(word, default), type(default)):
            wanted = "text" if isinstance(default, str) else "True or False"
            raise PluginError(f"'{name}' says {word}={values[word]!r}; it is {wanted}")
    values["options"] = values.get("options") or KINDS[kind].options
    return Card(kind, name, module=plugin[0], owner=plugin[1], version=plugin[2], **values)


def _options_named(name: str, given: Any, options: type[Options]) -> tuple[str, ...]:
    """Options one of which has to be set for the card to hold."""
    named = _listed(name, "teacher", given)
    for option in named:
        if option not in options.model_fields:
            raise PluginError(f"'{name}' says teacher={given!r}; it is True, False or names of options, not {option!r}")
    return named


def _unknown_keyword(word: str, name: Any, known: Mapping[str, Any]) -> str:
    text = f"'{word}' is not a keyword of register ({name!r}); known: {', '.join(known)}"
    near = nearest(word, known)
    if word in OLD_KEYWORDS:
        return f"{text}; {OLD_KEYWORDS[word]}"
    return f"{text}; did you mean '{near}'?" if near else text


def _listed(name: Any, word: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise PluginError(f"'{name}' says {word}={value!r}; write {word}=({value!r},)")
    return tuple(value)


def _checked(card: Card, host_keys: frozenset[str]) -> Card:
    """Refuses a card that could not be used later."""
    _, base, reserved = KINDS[card.kind]
    if not (isinstance(card.name, str) and _NAME.fullmatch(card.name)):
        raise PluginError(f"{card.name!r} is not a name: use lower-case letters, digits, '-', '_' and '.'")
    if not (isinstance(card.load, str) and _LOAD.fullmatch(card.load)):
        raise PluginError(f"'{card.name}' says load={card.load!r}; write '.submodule:Class' or ':Class'")
    if not (inspect.isclass(card.options) and issubclass(card.options, base)):
        raise PluginError(f"options of '{card.name}' are not a subclass of rqat.{base.__name__}")
    try:
        card.options.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        raise PluginError(f"options of '{card.name}' name the type '{error.name}', which is not there") from None
    unknown = sorted(set(card.needs) - set(get_args(Statistic)))
    if unknown:
        raise PluginError(
            f"'{card.name}' needs {', '.join(unknown)}; known statistics: {', '.join(get_args(Statistic))}"
        )
    if card.kind == "grid" and any(field.is_required() for field in card.options.model_fields.values()):
        raise PluginError(f"options of the grid '{card.name}' lack a default; a scheme has no place to set them")
    taken = sorted((reserved | host_keys) & set(card.options.model_fields))
    if taken:
        raise PluginError(f"option {', '.join(map(repr, taken))} of '{card.name}' is a key of the recipe itself")
    return card


def read_options(card: Card, raw: Mapping[str, Any], where: str) -> Options:
    """A part's options from what a recipe says.

    Args:
        where: file, line and key of the part.

    Raises:
        ValidationError: they are not as the options' class says.
        PluginError: the class fails at it, or holds what neither a manifest nor a fingerprint can.
    """

    def refuse(what: str, hint: str) -> PluginError:
        return PluginError(f"{where}: options of {card}: {what}.".removeprefix(": "), hint=hint)

    try:
        options = card.options.model_validate(dict(raw))
    except (ValidationError, RqatError):
        raise
    except Exception as error:
        hint = (
            "This is a fault of the plugin: a validator refuses what it is given by ValueError, and a default is there."
        )
        raise refuse(f"{type(error).__name__}: {error}", hint) from error
    for name, value in options:
        hint = "This is a fault of the plugin: options are text, numbers, paths, lists, mappings and models of these."
        if isinstance(value, SecretStr | SecretBytes):
            raise refuse(
                f"'{name}' is a secret, and all that recipes say is written down", "Read it from the environment."
            )
        try:
            options.model_dump(mode="json", include={name})
        except (PydanticSerializationError, UnicodeDecodeError) as error:
            raise refuse(f"'{name}' cannot be written as JSON: {' '.join(str(error).split())}", hint) from error
    return options


def check_class(card: Card, found: Any) -> None:
    """Refuses what cannot stand behind a card: another thing, an unfinished class, or one that says otherwise.

    Raises:
        PluginError: what is wrong with it.
    """
    base = KINDS[card.kind].base
    name = getattr(found, "__name__", found)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise PluginError(f"{card}: '{name}' is not a rqat.{base.__name__}.", hint="Derive it from that class.")
    kind: Any = found
    _check_methods(card, kind)


@cache  # for the class of a grid it is asked again with every layer
def _check_methods(card: Card, found: Any) -> None:
    base, name = KINDS[card.kind].base, found.__name__
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"{card}: '{name}' does not implement {', '.join(missing)}.")
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise PluginError(
            f"{card}: '{name}' takes {inspect.signature(found)}; it is built with its options, and nothing else.",
            hint="Write `def __init__(self, options)`, which calls that of the base class, or none.",
        ) from None
    for method, given in inspect.getmembers(base, inspect.isfunction):
        own = inspect.getattr_static(found, method)
        if inspect.isfunction(own) and own is not given and not method.startswith("_") and not _takes(own, given):
            theirs, ours = (", ".join(inspect.signature(function).parameters) for function in (own, given))
            raise PluginError(
                f"{card}: '{name}.{method}' takes ({theirs}); it is called with ({ours}).",
                hint=f"Give it the parameters of rqat.{base.__name__}.{method}.",
            )
    if issubclass(found, Quantizer) and frozenset(card.needs) != found.needs:
        raise PluginError(
            f"{card} registers needs={sorted(card.needs)}, but its class says {sorted(found.needs)}.",
            hint="Make the two equal.",
        )
    if issubclass(found, Transform) and card.hooks != (found.attach is not Transform.attach):
        raise PluginError(
            f"{card} registers hooks={card.hooks}, but its class {'has no' if card.hooks else 'has an'} `attach`.",
            hint="Make the two agree.",
        )
    if issubclass(found, Task) and bool(card.compares) != issubclass(found, Comparison):
        raise PluginError(
            f"{card} registers compares={card.compares}, its class is {'no' if card.compares else 'a'} Comparison.",
            hint="Make the two agree.",
        )
    if issubclass(found, Source) and card.model != (found.produce is not Source.produce):
        raise PluginError(
            f"{card} registers model={card.model}, but its class has {'no' if card.model else 'a'} `produce`.",
            hint="Make the two agree.",
        )


def _takes(own: Callable[..., Any], given: Callable[..., Any]) -> bool:
    """Whether a method can be called as another is: by position, and by name where that takes no positions."""
    parameters = inspect.signature(given).parameters.values()
    named = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(own).bind(*[None for one in parameters if one.name not in named], **named)
    except TypeError:
        return False
    return True
