"""`rqat plugins new`: copies an installed plugin out into a distribution of one's own, with a test that runs its suite.

The code is copied as it is; only the names it registers change, since a name can be offered once. The copy works under
its new module name because plugins import themselves relatively.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import __version__
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


def new_plugin(registry: Registry, name: str, like: str = "rtn", *, parent: Path | None = None) -> NewPlugin:
    """Writes the folder `name` with a plugin that starts as a copy of `like`.

    Args:
        name: of the distribution, `rqat-<owner>-<name>`; the module is called the same with underscores.
        like: the plugin to copy: a part's name ("gptq") or a module's ("rqat_gptq").
        parent: where the folder is to be; None is the current one.

    Raises:
        PluginError: the name is reserved or not of that form.
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
    cards = _cards_of(registry, like)
    names = _new_names(cards, name.removeprefix("rqat-"))
    for card in cards:
        if names[card.name] in [other.name for other in registry.cards(card.kind)]:
            raise PluginError(f"there is a {card.kind} '{names[card.name]}' already.", hint="Choose another name.")
    with explained(folder):
        (folder / "tests").mkdir(parents=True)
        copied = _copy(cards[0].module, folder, module)
        light = copied / "__init__.py" if copied.is_dir() else copied
        write_text(light, rename(light.read_text(encoding="utf-8"), names))
        write_text(folder / "pyproject.toml", _pyproject(name, copied, cards[0]))
        write_text(folder / "README.md", _readme(name, cards, names))
        write_text(folder / "tests" / "test_conformance.py", _tests(cards, names))
    return NewPlugin(folder, module, names, (f"cd {folder}", "pip install -e .", "pytest"))


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


def _cards_of(registry: Registry, like: str) -> list[Card]:
    """Every part of the plugin called `like`."""
    cards = [card for kind in KINDS for card in registry.cards(kind)]
    modules = {card.module for card in cards}
    if like not in modules:
        owners = sorted({card.module for card in cards if card.name == like})
        if f"rqat_{like}" in modules:
            like = f"rqat_{like}"
        elif len(owners) > 1:
            raise PluginError(f"'{like}' is a part of {' and of '.join(owners)}.", hint="Name the plugin's module.")
        elif owners:
            like = owners[0]
        else:
            raise UnknownName(like, "plugin", {card.name for card in cards} | modules)
    return [card for card in cards if card.module == like]


def _new_names(cards: Sequence[Card], suffix: str) -> dict[str, str]:
    old = sorted({card.name for card in cards})
    return {old[0]: suffix} if len(old) == 1 else {name: f"{suffix}-{name}" for name in old}


def _copy(module: str, folder: Path, new: str) -> Path:
    """Copies a module or a package; returns the copy."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PluginError(f"the code of '{module}' cannot be found.", hint="Copy another plugin with --from.")
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        return Path(shutil.copyfile(origin, folder / f"{new}.py"))
    shutil.copytree(origin.parent, folder / new, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return folder / new


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
        lines.append(f"class Test{title}{card.kind.capitalize()}(rqat.testing.{card.kind.capitalize()}Suite):")
        lines.append(f'    name = "{names[card.name]}"')
        if needed:
            lines.append(f"    options = {{{', '.join(f'{option!r}: ...' for option in needed)}}}".replace("'", '"'))
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks[:2]) + "".join(blocks[2:])


def _required(card: Card) -> list[str]:
    """Options without a default."""
    return [name for name, field in card.options.model_fields.items() if field.is_required()]
