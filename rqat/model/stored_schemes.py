"""The scheme of every layer of a quantized checkpoint, read from headers alone. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ModelError, RqatError
from ..scheme import Scheme
from ..storage import PARTIAL, read_json
from .config import ModelConfig, quantization_in
from .foreign import KEYS, foreign, is_foreign
from .hub import QUANTIZED_FILE
from .packed_shapes import with_settings

ENTRY = "rqat"
"""The only key of a file's metadata. With more than one their order in the file would be random."""

NATIVE = "rqat"
"""`quant_method` of exported folders that rqat itself reads; see `native.py`."""

TRANSFORMS_FILE = "transforms.safetensors"
"""Beside a checkpoint; see `transforms.py`."""

LARGEST_HEADER = 100_000_000


def schemes_in(facts: Mapping[str, Any]) -> dict[str, Scheme]:
    """The scheme of every layer, by the facts of a file, in order."""
    if "schemes" in facts:
        read = {text: Scheme.parse(text) for text in facts["schemes"].values()}
        return {name: read[facts["schemes"][name]] for name in facts["layers"]}
    scheme = Scheme.parse(facts["scheme"])
    if scheme.grid != facts["grid"]:
        raise ValueError("its grid is not that of its scheme")
    return dict.fromkeys(facts["layers"], scheme)


def is_quantized(config: ModelConfig) -> bool:
    """Whether a model is quantized already: a step of a run, or by its config.json."""
    return config.quantization is not None or bool(config.folder and (config.folder / QUANTIZED_FILE).is_file())


def stored_schemes(folder: Path) -> dict[str, Scheme]:
    """The scheme of every layer of a step of a run, or of a quantized checkpoint: rqat's own or another tool's.

    Raises:
        ModelError: it is neither, or one that cannot be taken over.
    """
    exported = quantization_of(folder)
    if is_foreign(exported) and not (folder / QUANTIZED_FILE).is_file():
        return dict(foreign(folder, exported).schemes)
    try:
        if exported.get("quant_method") == NATIVE:
            return {name: Scheme.parse(spelled) for name, spelled in exported["layers"].items()}
        return schemes_in(_facts_of(folder / QUANTIZED_FILE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RqatError) as error:
        if exported:
            raise ModelError(
                f"'{folder}' is quantized in a way that is not taken over ({exported.get('quant_method')}).",
                hint=f"Taken over are {', '.join([NATIVE, *KEYS])}, and steps of runs.",
            ) from error
        raise ModelError(f"'{folder}' {_what_else(folder)}.", hint=_meant(folder)) from error


def stored_transforms(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of what a step's model went through before it was quantized, in order.

    None of them where there is no such file, or a damaged one, which whoever loads it tells.
    """
    try:
        entries = _facts_of(folder / TRANSFORMS_FILE)["transforms"]
        return [(str(entry["name"]), dict(entry["options"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _facts_of(path: Path) -> Any:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= LARGEST_HEADER else {}
    return json.loads(header["__metadata__"][ENTRY])


def _what_else(folder: Path) -> str:
    if not folder.is_dir():
        return "is a file, not a folder" if folder.exists() else "does not exist"
    return "is not a finished quantize or train step, nor a quantized checkpoint"


def _meant(folder: Path) -> str:
    """What may be meant by a folder: what lies in it and would do."""
    inside = [path.parent for path in sorted(folder.glob("*/config.json")) if path.parent.suffix != PARTIAL]
    known = [str(path) for path in inside if (path / QUANTIZED_FILE).is_file() or _says_quantized(path)]
    return f"Name the folder of one, such as {known[-1] if known else 'runs/NAME/04-train-kd'}."


def _says_quantized(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(quantization_of(folder))
    return False


def quantization_of(folder: Path) -> Mapping[str, Any]:
    """The `quantization_config` of config.json, or what stands for it; empty where there is none."""
    config = read_json(folder / "config.json")
    return (quantization_in(with_settings(folder, config)) if isinstance(config, dict) else None) or {}
