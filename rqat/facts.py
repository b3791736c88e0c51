"""What decides the result of a step, as JSON: model, scheme, settings, plugins with options and source, data, inputs.

A step's fingerprint is the hash of its facts. Every key of a recipe counts, unless its field is marked `Neutral`; files
and models count by what they hold, not by how they are spelled.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .cards import Card
from .contracts import File, Options, Part, Start
from .keys import ModelKeys, Neutral, PluginKeys
from .model.hub import fetch, resolve
from .stage import Step, Use
from .storage import sha256_of

SMALL_BYTES = 64 << 20
"""Files up to this size are hashed whole; larger ones by size, safetensors header and evenly spread samples."""

SAMPLES, SAMPLE_BYTES = 256, 4096


def settings_facts(step: Step) -> dict[str, Any]:
    """A step's own keys; what a part was made from stands among its parts, with its defaults."""
    return _counted(step.settings, {use.card.kind for use in step.parts.values()})


def _counted(keys: BaseModel, kinds: set[Any]) -> dict[str, Any]:
    part = isinstance(keys, PluginKeys) and bool(kinds.intersection(keys.kinds))
    counted = {
        name: _value(getattr(keys, name), kinds)
        for name, field in type(keys).model_fields.items()
        if not Neutral.marks(field) and not (part and name == getattr(keys, "named_by", ""))
    }
    if isinstance(keys, PluginKeys) and not part and keys.options:
        counted["options"] = keys.options
    return counted


def _options(given: BaseModel) -> Iterator[tuple[str, Any]]:
    """What counts of options, at any depth."""
    fields = type(given).model_fields
    yield from ((name, value) for name, value in given if name not in fields or not Neutral.marks(fields[name]))


def _value(value: Any, kinds: set[Any]) -> Any:
    if isinstance(value, ModelKeys):
        return model_facts(value)
    if isinstance(value, File):
        return contents_of(value.path)
    if isinstance(value, BaseModel):
        return _counted(value, kinds)
    if isinstance(value, Mapping):
        return {str(key): _value(inner, kinds) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(inner, kinds) for inner in value]
    return value


def part_facts(use: Use) -> dict[str, Any]:
    """A plugin's part: who provides it, its options, and the contents of its source and of its data files."""
    card = use.card
    options = {name: _option(value) for name, value in _options(use.options) if not _is_parts(value)}
    facts: dict[str, Any] = card_facts(card) | {"options": options}
    root = os.environ.get("RQAT_DATA")
    if root and not any(files_of(use.options)) and (Path(root) / card.name).is_dir():
        facts["files"] = contents_of(Path(root) / card.name)
    if use.parts:
        facts["parts"] = [part_facts(part) | {"weight": weight} for part, weight in use.parts]
    return facts


def card_facts(card: Card) -> dict[str, Any]:
    """Who provides a part, and the contents of its source."""
    facts = {"name": card.name, "plugin": card.module, "owner": card.owner, "version": card.version}
    # What has no class is no plugin: a task of lm-eval counts by its release, whether lm-eval is loaded yet or not.
    if card.load and (source := source_fact(card.module)):
        facts["source"] = source
    return facts


def _option(value: Any) -> Any:
    """An option's value; a file's is its contents."""
    if isinstance(value, File):
        return contents_of(value.path)
    if isinstance(value, BaseModel):
        return {name: _option(inner) for name, inner in _options(value)}
    if isinstance(value, Mapping):
        return {str(key): _option(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_option(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _is_parts(value: Any) -> bool:
    """Whether an option names other parts, which stand among the facts with the defaults of their own options."""
    return isinstance(value, Start) or (
        isinstance(value, (list, tuple)) and any(isinstance(item, Part) for item in value)
    )


def files_of(options: Options) -> Iterator[tuple[str, File]]:
    """Options of type `rqat.File`, by name, also inside lists and mappings."""

    def inside(value: Any) -> Iterator[File]:
        if isinstance(value, File):
            yield value
        elif isinstance(value, Mapping):
            yield from (file for item in value.values() for file in inside(item))
        elif isinstance(value, (list, tuple)):
            yield from (file for item in value for file in inside(item))

    for name, value in options:
        yield from ((name, file) for file in inside(value))


def contents_of(path: Path) -> Any:
    """What a file or a folder holds: a hash, or one for every file by its name within the folder; None for neither."""
    if path.is_dir():
        found = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return {str(inner.relative_to(path)): file_fact(inner) for inner in found}
    return file_fact(path) if path.is_file() else None


def source_fact(module: str) -> str:
    """A digest of the files of a plugin that is loaded; "" where there are none.

    Those are its own, data files inside a package included, and those of modules beside it that it imports.
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        return ""
    path = Path(file)
    first = path.parent if path.name == "__init__.py" else path
    waiting, found = [first], dict[Path, list[Path]]()
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = _files_of_module(one)
            waiting += _beside(first.parent, found[one])
    paths = sorted(inner for files in found.values() for inner in files)
    return _together((str(inner.relative_to(first.parent)), file_fact(inner)) for inner in paths)


def _files_of_module(path: Path) -> list[Path]:
    """The file of a module; of a package all its files, but for what Python or an editor leaves there."""
    if path.is_file():
        return [path]
    inside = (inner for inner in path.rglob("*") if inner.is_file() and inner.suffix != ".pyc")
    return [inner for inner in inside if not any(part[0] == "." for part in inner.relative_to(path).parts)]


def _beside(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """Modules and packages in a folder that files import; none where distributions are installed: there lies all."""
    if _holds_installed(folder):
        return
    for file in files:
        if file.suffix == ".py":
            for name in _imported(file, file_fact(file)):
                module, package = folder / f"{name}.py", folder / name
                if module.is_file():
                    yield module
                elif (package / "__init__.py").is_file():
                    yield package


@lru_cache(maxsize=64)
def _holds_installed(folder: Path) -> bool:
    return any(folder.glob("*.dist-info"))


@lru_cache(maxsize=4096)
def _imported(file: Path, contents: str) -> frozenset[str]:
    """Top-level names of the modules a file imports by their full names; none where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return frozenset()
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return frozenset(name.partition(".")[0] for name in names)


def _together(facts: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, fact in facts:
        digest.update(f"{name}\0{fact}\0".encode())
    return digest.hexdigest()


def model_facts(keys: ModelKeys) -> dict[str, Any]:
    """How a model is loaded, and hashes of its configuration, tokenizer and weights; its name does not count.

    A model of the hub is fetched if need be: without its files, the facts of a first run and of its continuation would
    differ.

    Raises:
        ModelError: it cannot be fetched.
    """
    folder = resolve(keys) or fetch(keys, offline=False)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    config = [path for path in files if path.name in ("config.json", "generation_config.json") or path.suffix == ".py"]
    tokenizer = [
        path
        for path in files
        if re.match(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)", path.name)
    ]
    return {"dtype": keys.dtype, "trust_remote_code": keys.trust_remote_code} | {
        part: {path.name: file_fact(path) for path in found}
        for part, found in (("config", config), ("tokenizer", tokenizer), ("weights", weights))
    }


def file_fact(path: Path) -> str:
    """What identifies a file's content: its hash; of a large file its size and a hash of samples."""
    stat = path.stat()
    return _file_fact(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_fact(path: str, size_bytes: int, modified_ns: int) -> str:
    blob = Path(path).name
    if re.fullmatch(r"[0-9a-f]{64}", blob):  # the hub's cache names large files by their hash
        return blob
    if size_bytes <= SMALL_BYTES:
        return sha256_of(Path(path))
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        start = file.read(8)
        digest.update(start)
        if path.endswith(".safetensors"):
            digest.update(file.read(min(int.from_bytes(start, "little"), SMALL_BYTES)))
        for sample in range(SAMPLES):
            file.seek((size_bytes - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return f"{size_bytes} bytes, sampled {digest.hexdigest()}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two steps' facts, one readable line each."""
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) and (key in before) == (key in after):
            continue
        if key.startswith("inputs."):
            lines.append(f"the step it starts from ({key.removeprefix('inputs.')}) differs")
        elif key.startswith(("parts.", "scheme.")) and key.endswith(".source"):
            lines.append(f"the source of {_plugin(new, old, key)} was edited")
        else:
            lines.append(f"{key}: {_shown(before, key)} there, {_shown(after, key)} now")
    return lines


def _plugin(new: Mapping[str, Any], old: Mapping[str, Any], key: str) -> str:
    """Module of the part whose fact `key` is."""
    for facts in (new, old):
        found: Any = facts
        for name in key.split(".")[:-1]:
            if isinstance(found, list):
                index = int(name) if name.isdecimal() and len(name) < 10 else len(found)
                found = found[index] if index < len(found) else None
            else:
                found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and "plugin" in found:
            return str(found["plugin"])
    return "a plugin"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists, under dotted keys."""
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else None
    )
    if items is None:
        yield key, value
        return
    for name, inner in items:
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    value = values[key]
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)  # as a recipe has them
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text
