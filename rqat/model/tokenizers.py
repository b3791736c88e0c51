"""Tokenizers from folders, each read once by a process: a vocabulary of 150,000 tokens takes a second or two.

Steps of a run keep copies of one and the same tokenizer, so what is read is known by its contents, not by its folder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage import read_json

if TYPE_CHECKING:
    import transformers

FILES = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|spiece)")
"""Beginnings of the names of the files, and of a folder, that a tokenizer is read from."""

CHOOSING = ("model_type", "architectures", "auto_map", "tokenizer_class")
"""Entries of config.json from which transformers takes a tokenizer's class."""

KEPT = 3
"""Tokenizers that are kept; each takes some 100 MB."""

_kept: dict[tuple[str, bool], tuple[Any, tuple[Any, ...]]] = {}


def tokenizer_in(folder: Path, *, trust_remote_code: bool = False) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer in a folder. To be copied before it is changed: others get the same, unless it was changed.

    Raises:
        Exception: whatever transformers and tokenizers raise of a damaged one.
    """
    import transformers

    key = (_contents(folder), trust_remote_code)
    held = _kept.get(key)
    if held is None or _settings(held[0]) != held[1]:
        read: Any = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        held = _kept[key] = (read, _settings(read))
        while len(_kept) > KEPT:
            del _kept[next(iter(_kept))]
    found: transformers.PreTrainedTokenizerBase = held[0]
    return found


def _settings(tokenizer: Any) -> tuple[Any, ...]:
    """What is usually changed of a tokenizer."""
    sides = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length)
    return (len(tokenizer), str(tokenizer.special_tokens_map), tokenizer.chat_template, *sides)


def _contents(folder: Path) -> str:
    """A digest of all that decides what tokenizer a folder holds; one with code of its own counts by its folder."""
    config = read_json(folder / "config.json")
    chosen = {key: config.get(key) for key in CHOOSING} if isinstance(config, dict) else {}
    digest = hashlib.sha256(repr(chosen).encode())
    if chosen.get("auto_map") or any(folder.glob("*.py")):
        digest.update(str(folder.resolve()).encode())
    paths = [path for top in folder.iterdir() if FILES.match(top.name) for path in (top, *top.rglob("*"))]
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(f"\0{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
