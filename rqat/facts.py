"""What decides the result of a step, as JSON: model, scheme, settings, plugins and options, data files, earlier steps.

A step's fingerprint is the hash of its facts. What cannot change a result is left out (how often to save, which
variants to evaluate), so that changing it does not make a finished step unusable.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .contracts import Options
from .keys import EvaluateKeys, ModelKeys, TrainKeys
from .model.hub import fetch, resolve
from .registry import parts_of
from .storage import fingerprint_of, sha256_of

if TYPE_CHECKING:
    from .plan import Plan, Step, Use

SMALL_BYTES = 64 << 20
"""Files up to this size are hashed whole; larger ones by size, safetensors header and evenly spread samples."""

SAMPLES, SAMPLE_BYTES = 256, 4096

_SETTINGS: dict[str, frozenset[str]] = {
    "calibrate": frozenset({"split", "seed", "samples", "tokens", "pack"}),
    "quantize": frozenset({"skip", "indivisible"}),
    "gate": frozenset({"data", "gate", "max_tokens", "seed"}),
    "export": frozenset(),
    "evaluate": frozenset({"limit", "batch"}),
}
"""Host keys that decide the result of a stage; all keys but `_INDIFFERENT` for `train`."""

SAMPLING = ("temperature", "top_p", "max_completion_tokens")
"""Options of an objective that is trained on rewards that its gate samples with."""

_INDIFFERENT = frozenset({"gate", "save_every", "objective", "task", "rewards", "teacher"})
"""Of these, what decides the result is among the inputs, the parts, or a fact of its own."""


def facts_of(plan: Plan, step: Step) -> dict[str, Any]:
    """Everything that decides the result of a step."""
    steps = {other.name: other for other in plan.steps}
    model = model_facts(plan.model)
    facts: dict[str, Any] = {
        "rqat": __version__,
        "stage": step.stage,
        "model": {"tokenizer": model["tokenizer"]} if step.stage == "calibrate" else model,
        "settings": _settings(step),
        "parts": {role: _part(plan, use) for role, use in sorted(step.parts.items())},
        "inputs": {role: fingerprint_of(facts_of(plan, steps[name])) for role, name in sorted(step.inputs.items())},
    }
    if step.stage in ("quantize", "train", "export"):
        facts["scheme"] = plan.scheme.facts()
    if step.stage == "train" and isinstance(step.settings, TrainKeys) and step.settings.teacher is not None:
        facts["teacher"] = model_facts(step.settings.teacher)
    return facts


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two steps' facts, one readable line each."""
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) and (key in before) == (key in after):
            continue
        if key.startswith("inputs."):
            lines.append(f"the step it starts from ({key.removeprefix('inputs.')}) differs")
        else:
            lines.append(f"{key}: {_shown(before, key)} there, {_shown(after, key)} now")
    return lines


def model_facts(keys: ModelKeys) -> dict[str, Any]:
    """Name, revision and dtype of a model, and hashes of its configuration, tokenizer and weights.

    A model of the hub is fetched if need be: without its files, the facts of a first run and of its continuation would
    differ.

    Raises:
        ModelError: it cannot be fetched.
    """
    name = keys.path.rstrip("/").rpartition("/")[2]
    known = {"name": name, "revision": keys.revision, "dtype": keys.dtype, "trust_remote_code": keys.trust_remote_code}
    folder = resolve(keys) or fetch(keys, offline=False)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    config = [path for path in files if path.name in ("config.json", "generation_config.json")]
    tokenizer = [
        path
        for path in files
        if re.match(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)", path.name)
    ]
    return known | {
        part: {path.name: file_fact(path) for path in found}
        for part, found in (("config", config), ("tokenizer", tokenizer), ("weights", weights))
    }


def file_fact(path: Path) -> str:
    """What identifies a file's content: its hash; of a large file its size and a hash of samples."""
    stat = path.stat()
    return _file_fact(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
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


def data_files(options: Options) -> Iterator[tuple[str, str]]:
    """Options that name local files, as (option, file): `data`, `path`, `file`, or a name that ends in one of them."""
    for name, value in options:
        if name in ("data", "path", "paths", "file", "files") or name.endswith(("_path", "_file", "_data")):
            found = [value] if isinstance(value, (str, Path)) else value if isinstance(value, (list, tuple)) else []
            yield from ((name, str(item)) for item in found if isinstance(item, (str, Path)) and "://" not in str(item))


def _settings(step: Step) -> dict[str, Any]:
    keys = type(step.settings).model_fields
    wanted = _SETTINGS.get(step.stage, frozenset(keys) - _INDIFFERENT)
    settings = step.settings.model_dump(mode="json", include=set(wanted & set(keys)))
    if isinstance(step.settings, EvaluateKeys) and "task" not in step.parts:  # a task of lm-eval's own
        settings |= {"task": step.settings.task, "options": step.settings.options}
    if isinstance(step.settings, TrainKeys) and step.stage == "gate":  # how it samples; see stages/gate.py
        settings |= {key: step.settings.options.get(key) for key in SAMPLING}
        settings["batch"] = step.settings.micro_batch or step.settings.batch
    if "data" in settings:  # what belongs to the source is among the parts, with its defaults
        settings["data"] = {key: settings["data"][key] for key in ("split", "seed")}
    return settings


def _part(plan: Plan, use: Use) -> dict[str, Any]:
    card = use.card
    facts: dict[str, Any] = {
        "name": card.name,
        "plugin": card.module,
        "owner": card.owner,
        "version": card.version,
        "options": use.options.model_dump(mode="json"),
    }
    named = [file for _, file in data_files(use.options)]
    files = {name: file_fact(path) for file in named for name, path in _files_in(file)}
    root = os.environ.get("RQAT_DATA")
    if root and not named:
        files = {f"{card.name}/{path.name}": file_fact(path) for _, path in _files_in(str(Path(root) / card.name))}
    if files:
        facts["files"] = files
    if use.parts:
        made_of = {name for name, _, _ in parts_of(use.options)}
        facts["options"] = {name: value for name, value in facts["options"].items() if name not in made_of}
        facts["parts"] = [_part(plan, part) | {"weight": weight} for part, weight in use.parts]
    return facts


def _files_in(name: str) -> list[tuple[str, Path]]:
    """A file, or the files directly in a folder; none when neither is there."""
    path = Path(name).expanduser()
    if path.is_dir():
        return [(f"{name}/{inner.name}", inner) for inner in sorted(path.iterdir()) if inner.is_file()]
    return [(name, path)] if path.is_file() else []


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
    text = str(values[key])
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text
