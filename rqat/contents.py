"""What files hold, in a few words that change when they do: of data, of models, of a plugin's source."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .keys import ModelKeys
from .model.hub import fetch, resolve
from .storage import sha256_of

SMALL_BYTES = 64 << 20
"""Files up to this size are hashed whole; larger ones by size, safetensors header and evenly spread samples."""

SAMPLES, SAMPLE_BYTES = 256, 4096


def contents_of(path: Path) -> Any:
    """What a file or a folder holds: a hash, or one for every file by its name within the folder; None for neither."""
    if path.is_dir():
        found = sorted(inner for inner in path.rglob("*") if inner.is_file())
        return {str(inner.relative_to(path)): file_fact(inner) for inner in found}
    return file_fact(path) if path.is_file() else None


def source_fact(module: str) -> str:
    """A digest of the Python files of a plugin that is loaded; "" where there are none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        return ""
    path = Path(file)
    root = path.parent
    paths = sorted(root.rglob("*.py")) if path.name == "__init__.py" else [path]
    return _together((str(inner.relative_to(root)), file_fact(inner)) for inner in paths)


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
