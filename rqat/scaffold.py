"""`rqat plugins new`: copies an installed plugin out into a distribution of one's own, with a test that runs its suite.

The code is copied as it is; the card alone changes: names, since a name can be offered once, docstrings that speak of
the original, and `from __future__ import annotations`, under which Typer cannot read a command written beside the card.
Of a plugin with several parts, one can be copied with the files it is made of. The copy works under its new module name
because plugins import themselves relatively.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import __version__, cut_out
from .cards import spelled
from .errors import PluginError, RunError, UnknownName
from .registry import BUILTIN, KINDS, Card, Registry
from .storage import explained, write_text

_NAME = re.compile(r"rqat(-[a-z][a-z0-9]*)+")
_RESERVED = frozenset({*BUILTIN, "rqat", "rqat_kernels"})


@dataclass(frozen=True)
class NewPlugin:
    """What was written.

    Attributes:
        folder: of the new distribution.
        module: its import name.
        names: what the copied parts were called, and what they are called now.
        commands: what to type next.
    """

    folder: Path
    module: str
    names: Mapping[str, str]
    commands: Sequence[str]


def new_plugin(
    registry: Registry, name: str, like: str = "rtn", *, kind: str | None = None, parent: Path | None = None
) -> NewPlugin:
    """Writes the folder `name` with a plugin that starts as a copy of `like`.

    Args:
        name: of the distribution, `rqat-<owner>-<name>`; the module is called the same with underscores.
        like: what to copy: a part ("kd", "rqat_data:jsonl"), or a whole plugin by its module ("rqat_gptq").
        kind: of the part, where parts of several kinds are called `like`.
        parent: where the folder is to be; None is the current one.

    Raises:
        PluginError: the name is reserved or not of that form; `like` may be one of several parts.
        UnknownName: there is no plugin to copy.
        RunError: the folder exists already or cannot be written.
    """
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or module in _RESERVED:
        reason = "belongs to rqat" if module in _RESERVED else "is not a name for a plugin"
        raise PluginError(f"'{name}' {reason}.", hint="Call it rqat-<owner>-<name>, in lower case: rqat-acme-quant")
    folder = (parent or Path()) / name
    if folder.exists():
        raise RunError(f"'{folder}' exists already.", hint="Choose another name; nothing is overwritten.")
    cards = _cards_of(registry, like, kind)
    names = _new_names(cards, name.removeprefix("rqat-"))
    for card in cards:
        if names[card.name] in [other.name for other in registry.cards(card.kind)]:
            raise PluginError(f"there is a {card.kind} '{names[card.name]}' already.", hint="Choose another name.")
    with explained(folder), _whole_or_not_at_all(folder):
        (folder / "tests").mkdir(parents=True)
        copied = _copy(registry, cards, folder, module)
        light = copied / "__init__.py" if copied.is_dir() else copied
        write_text(light, _card_of_copy(light.read_text(encoding="utf-8"), cards, names))
        write_text(folder / "pyproject.toml", _pyproject(name, copied, cards[0]))
        write_text(folder / "README.md", _readme(name, cards, names))
        write_text(folder / "tests" / "test_conformance.py", _tests(cards, names))
    return NewPlugin(folder, module, names, (f"cd {folder}", "pip install -e .", "pytest"))


@contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[None]:
    """Leaves no half of a folder behind, for which the same command would be refused the next time."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def rename(code: str, names: Mapping[str, str]) -> str:
    """The code of a plugin with other names in its `register(...)` calls, and nothing else changed."""
    lines = code.splitlines(keepends=True)
    found = [
        node.args[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register" and node.args
    ]
    for constant in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and constant.value in names:
            line = lines[constant.lineno - 1].encode()  # ast counts bytes
            new = f'"{names[constant.value]}"'.encode()
            changed = line[: constant.col_offset] + new + line[constant.end_col_offset :]
            lines[constant.lineno - 1] = changed.decode()
    return "".join(lines)


def _cards_of(registry: Registry, like: str, kind: str | None) -> list[Card]:
    """Every part of the plugin called `like`, or the one part called so."""
    cards = [card for card in registry.all_cards() if kind in (None, card.kind)]
    whole = [card for card in cards if spelled(card.module) == spelled(like)]
    if whole:
        return whole
    plugin, _, bare = like.rpartition(":")
    found = [card for card in cards if card.name == bare and (not plugin or card.belongs_to(plugin))]
    if len(found) > 1:
        kinds = {card.kind for card in found}
        choices = [f"--kind {k}" for k in KINDS if k in kinds] if len(kinds) > 1 else [c.full_name for c in found]
        raise PluginError(
            f"'{like}' is {' and '.join(f'the {card.kind} of {card.module}' for card in found)}.",
            hint=f"Say which: {' or '.join(choices)}.",
        )
    found = found or [card for card in cards if card.module == f"rqat_{like}"]
    if not found:
        raise UnknownName(like, f"{kind or 'part'} or plugin", {c.name for c in cards} | {c.module for c in cards})
    return found


def _card_of_copy(code: str, cards: Sequence[Card], names: Mapping[str, str]) -> str:
    """The code of a copied card's module, under its new names and without what only the original is."""
    code = cut_out.with_names_in_docstrings(rename(code, names), names)
    offers = "; ".join(f"{card.kind} `{names[card.name]}`: {card.summary}" for card in cards)
    text = textwrap.fill(f"{offers[:1].upper()}{offers[1:]}.", 117)
    return cut_out.without_future_annotations(cut_out.with_docstring(code, text))


def _new_names(cards: Sequence[Card], suffix: str) -> dict[str, str]:
    old = sorted({card.name for card in cards})
    return {old[0]: suffix} if len(old) == 1 else {name: f"{suffix}-{name}" for name in old}


def _copy(registry: Registry, cards: Sequence[Card], folder: Path, new: str) -> Path:
    """Copies a module or a package, or of it what some of its parts are made of; returns the copy."""
    module = cards[0].module
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PluginError(f"the code of '{module}' cannot be found.", hint="Copy another plugin with --from.")
    origin = Path(spec.origin)
    kept = {(f"register_{card.kind}s", card.name) for card in cards}
    some = len(kept) < sum(card.module == module for card in registry.all_cards())
    if not spec.submodule_search_locations:
        copied = Path(shutil.copyfile(origin, folder / f"{new}.py"))
        if some:
            write_text(copied, cut_out.keep_parts(copied.read_text(encoding="utf-8"), kept))
        return copied
    copied = folder / new
    shutil.copytree(origin.parent, copied, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    if some:
        _cut(copied, cards, kept)
    return copied


def _cut(package: Path, cards: Sequence[Card], kept: set[tuple[str, str]]) -> None:
    """Leaves in a copied package what some of its parts are made of."""
    modules = cut_out.files_of(package, [card.load for card in cards])
    for file in cut_out.data_of_others(package, modules):
        file.unlink()
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package).with_suffix("").parts)
        if not name.endswith("__init__") and name not in modules:
            file.unlink()
    card = package / "__init__.py"
    needed = cut_out.imported_from_card(package, modules)
    write_text(card, cut_out.keep_parts(card.read_text(encoding="utf-8"), kept, needed))


def _pyproject(name: str, copied: Path, card: Card) -> str:
    major, minor = __version__.split(".")[:2]
    needs = [f'"rqat>={major}.{minor},<{major}.{int(minor) + 1}"']
    if card.owner != "rqat":  # the copied code needs what its origin needs
        needs.append(f'"{card.owner}"')
    return f"""\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "{card.summary}"
readme = "README.md"
requires-python = ">=3.11"
dependencies = [{", ".join(needs)}]

[project.optional-dependencies]
dev = ["pytest>=8"]

[project.entry-points.rqat]
{name.removeprefix("rqat-")} = "{name.replace("-", "_")}"

[tool.hatch.build.targets.wheel]
include = ["/{copied.name}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""


def _readme(name: str, cards: Sequence[Card], names: Mapping[str, str]) -> str:
    offers = "\n".join(f"- {card.kind} `{names[card.name]}`" for card in cards)
    return f"""\
# {name}

A plugin for rqat. It offers

{offers}

and started as a copy of `{cards[0].module}` ({cards[0].owner} {cards[0].version}, Apache-2.0).

    pip install -e .        # rqat then finds it by its entry point
    rqat plugins            # shows it with its version
    pytest                  # the suites that every plugin of its kind has to pass
"""


def _tests(cards: Sequence[Card], names: Mapping[str, str]) -> str:
    waiting = any(_required(card) for card in cards)
    blocks = [
        '"""What rqat relies on; add tests of your own beside it."""\n',
        f"{'import pytest' + chr(10) if waiting else ''}import rqat.testing\n",
    ]
    for card in cards:
        title = "".join(part.capitalize() for part in re.split(r"[^a-z0-9]+", names[card.name]))
        needed = _required(card)
        lines = ["", ""]
        if needed:
            lines.append(f'@pytest.mark.skip(reason="set options below, then remove this line: {", ".join(needed)}")')
        suite = "Comparison" if card.compares else card.kind.capitalize()
        lines.append(f"class Test{title}{card.kind.capitalize()}(rqat.testing.{suite}Suite):")
        lines.append(f'    name = "{names[card.name]}"')
        if needed:
            lines.append(f"    options = {{{', '.join(f'{option!r}: ...' for option in needed)}}}".replace("'", '"'))
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks[:2]) + "".join(blocks[2:])


def _required(card: Card) -> list[str]:
    """Options without a default."""
    return [name for name, field in card.options.model_fields.items() if field.is_required()]
