"""From the name of a model to a folder with its files: built-in, on disk, or from the Hugging Face hub.

Imports neither torch nor transformers; huggingface_hub only when a name is neither built in nor a folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ..contracts.options import became, expanded
from ..errors import ModelError, UnknownName
from ..keys import ModelKeys
from ..storage import is_inside

BUILTIN = "builtin:"
ASSETS = Path(__file__).parent.parent / "assets"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GENERATION_FILE = "generation_config.json"
QUANTIZED_FILE = "quantized.safetensors"
"""Which a step of a run has beside its other weights, and no model for others does."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
"""A folder with none of these has no tokenizer."""

LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git put in place of a large one."""

TELLING = ("tokenizer_config.json", GENERATION_FILE, "chat_template.jinja")
"""Files that decide how a model is asked or stopped, and that it works without: a missing one is not noticed."""

FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md")
"""What is fetched from the hub, the card among it, which names the licence; `*.py` besides with `trust_remote_code`."""


def resolve(keys: ModelKeys) -> Path | None:
    """Where the files of a model are; None for a hub model that is not, or not completely, in the local cache.

    Raises:
        UnknownName: no such built-in model.
        ModelError: a folder that does not exist, or text that is neither a folder nor a hub name.
    """
    path = keys.path
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        if not (ASSETS / name / "config.json").is_file():
            raise UnknownName(
                path, "built-in model", [f"{BUILTIN}{e.parent.name}" for e in ASSETS.glob("*/config.json")]
            )
        return ASSETS / name
    folder = expanded(path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"'{path}' is a file, not a model folder.", hint="Name the folder with config.json in it.")
    if path.startswith((".", "~", "$", os.sep)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ModelError(f"The model folder '{path}'{became(path)} does not exist.", hint="Check the path.")
    cached = _cache_folder(keys)
    return None if missing_files(cached) else cached


def fetch(keys: ModelKeys, *, offline: bool, only: Sequence[str] | None = None) -> Path:
    """Fetches all files of a hub model, or `only` those that match a pattern.

    Raises:
        ModelError: the hub does not give them, or nothing may be fetched; the message lists what is missing.
    """
    from huggingface_hub import snapshot_download

    _refuse_offline(keys, offline)
    patterns = list(only or [*FETCHED, *(["*.py"] if keys.trust_remote_code else [])])
    with _explained(keys):
        return Path(snapshot_download(keys.path, revision=keys.revision, allow_patterns=patterns))


def read_remote(keys: ModelKeys, *, offline: bool) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str]]]:
    """config.json of a hub model, and shape and dtype of its tensors, without fetching its weights.

    Raises:
        ModelError: as `fetch`.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    _refuse_offline(keys, offline)
    with _explained(keys):
        config = Path(hf_hub_download(keys.path, "config.json", revision=keys.revision))
        raw = json.loads(config.read_text(encoding="utf-8"))
        files = get_safetensors_metadata(keys.path, revision=keys.revision).files_metadata.values()
    return raw, {name: (tuple(entry.shape), str(entry.dtype)) for file in files for name, entry in file.tensors.items()}


def shard_names(folder: Path) -> list[str]:
    """The weight files that the index in a folder names.

    Raises:
        ModelError: it is damaged, or names what is not in its folder.
    """
    try:
        names: set[Any] = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"'{folder / INDEX}' is damaged.", hint="Fetch the model again.") from error
    outside = sorted(str(name) for name in names if not is_inside(name))
    if outside:
        raise ModelError(
            f"'{folder / INDEX}' names {outside[0]!a:.100}, which is not in its folder.",
            hint="Do not trust this checkpoint; fetch it from where it was made.",
        )
    return sorted(names)


def missing_files(folder: Path | None) -> list[str]:
    """What a model folder still lacks: config, weights, tokenizer.

    Raises:
        ModelError: see `shard_names`.
    """
    if folder is None:
        return ["config.json", SINGLE, "tokenizer.json"]
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not (folder / SINGLE).is_file():
        if (folder / INDEX).is_file():
            missing += [name for name in shard_names(folder) if not (folder / name).is_file()]
        else:
            missing.append(SINGLE)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append("tokenizer.json")
    return missing


def uncertain_files(folder: Path) -> list[str]:
    """Which of `TELLING` a folder of the hub's cache lacks although nothing says that the model has none."""
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return []
    lacking = [name for name in TELLING if not (folder / name).is_file() and not _absent(folder, name).is_file()]
    if "chat_template.jinja" in lacking and b'"chat_template"' in _bytes(folder / "tokenizer_config.json"):
        lacking.remove("chat_template.jinja")
    return lacking


def refuse_pointers(folder: Path) -> None:
    """Refuses a folder in which git left pointers in place of files.

    Raises:
        ModelError: names them.
    """
    small = (path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size < 1024)
    pointers = [path.name for path in small if path.suffix != ".md" and _bytes(path).startswith(LFS)]
    if pointers:
        raise ModelError(
            f"'{folder}' holds Git LFS pointers in place of {', '.join(pointers)}.",
            hint=f"Fetch the files themselves: git -C {folder} lfs pull",
        )


@cache
def complete(path: str, folder: Path) -> None:
    """Asks the hub for what is uncertain of the model `path` in the cache, once; without network nothing happens."""
    uncertain = uncertain_files(folder)
    if not uncertain:
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for name in () if HF_HUB_OFFLINE else uncertain:
        try:
            hf_hub_download(path, name, revision=folder.name)
        except LocalEntryNotFoundError:
            return  # no network; the plan says what is uncertain
        except EntryNotFoundError:
            continue  # huggingface_hub has noted it
        except (HfHubHTTPError, OSError):
            return


def _absent(folder: Path, name: str) -> Path:
    """Where the hub's cache notes that a model has no such file."""
    return folder.parent.parent / ".no_exist" / folder.name / name


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _cache_folder(keys: ModelKeys) -> Path | None:
    """The folder of a hub model in the local cache, complete or not."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(keys.path, "config.json", revision=keys.revision)
    except HFValidationError as error:
        raise ModelError(f"'{keys.path}' is neither a folder nor a hub name.", hint="Check the path.") from error
    return Path(config).parent if isinstance(config, str) else None


def _refuse_offline(keys: ModelKeys, offline: bool) -> None:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if offline or HF_HUB_OFFLINE:
        revision = f" (revision {keys.revision})" if keys.revision else ""
        raise ModelError(
            f"'{keys.path}'{revision} is no folder, and of the hub model of that name the local cache lacks: "
            f"{', '.join(missing_files(_cache_folder(keys)))}.",
            hint="Run once without --offline and without HF_HUB_OFFLINE, or name a folder.",
        )


@contextmanager
def _explained(keys: ModelKeys) -> Iterator[None]:
    """Turns the hub's refusals into one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError

    try:
        yield
    except NotASafetensorsRepoError as error:
        raise ModelError(
            f"'{keys.path}' has no safetensors weights on the hub.", hint="Only safetensors are loaded."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"'{keys.path}' is no folder, and the hub does not give it: {reason}",
            hint="Check the name, the network and, for gated models, that you are logged in; or name a folder.",
        ) from error
