"""Files of tensors with facts about them: whole or refused; equal tensors give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import ModelError
from ..storage import PARTIAL, explained
from .hub import QUANTIZED_FILE
from .stored_schemes import ENTRY
from .tensor_file import Lying, TensorFile, write_file

COMPARED_AT_ONCE = 1 << 18
"""Values that are rounded and compared at once: what stays in a CPU's cache."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Lying], facts: dict[str, Any]) -> None:
    """Writes tensors, and facts about them, into one file, under a temporary name first.

    Raises:
        RunError: the disk is full or the folder not writable.
    """
    save_tensors(path, tensors, {ENTRY: json.dumps(facts)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor | Lying], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, as readable as its folder is, under a temporary name first.

    Raises:
        RunError: the disk is full or the folder not writable.
    """
    with explained(path):
        write_file(path, tensors, metadata)
        path.chmod(path.parent.stat().st_mode & 0o666)


def owned(tensor: Tensor) -> Tensor:
    """The same values in memory of their own: of a view of something larger, or in another order, a copy.

    Files are written from such tensors only, and only they let go of what they were cut out of.
    """
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor of a file this module wrote, and its facts.

    Raises:
        ModelError: the file is missing, damaged or foreign.
    """
    file, facts = open_tensors(path)
    return {name: file.read(name) for name in file.tensors}, facts


def open_tensors(path: Path) -> tuple[TensorFile, dict[str, Any]]:
    """A file this module wrote, and its facts; tensors are read when they are asked for.

    Raises:
        ModelError: the file is missing, damaged or foreign.
    """
    try:
        file = TensorFile(path)
        return file, json.loads(file.metadata[ENTRY])
    except FileNotFoundError as error:
        raise ModelError(
            f"'{path.parent}' is not an rqat checkpoint: it has no {path.name}.",
            hint="Name the folder of a finished quantize or train step.",
        ) from error
    except KeyError as error:
        raise ModelError(
            f"'{path}' was not written by rqat.", hint="Name the folder of a finished quantize or train step."
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, str(error)) from error


def narrowest(tensor: Tensor) -> Tensor:
    """A float32 tensor as bfloat16 or float16 where that holds all its values exactly; anything else as it is."""
    if tensor.dtype == torch.float32:
        pieces = tensor.contiguous().flatten().split(COMPARED_AT_ONCE)
        for dtype in (torch.bfloat16, torch.float16):
            if all(torch.equal(piece.to(dtype).float(), piece) for piece in pieces):
                return tensor.to(dtype)
    return tensor


def damaged(path: Path, what: str) -> ModelError:
    """The error for a checkpoint that is there but not whole: only what a run has made is advised to be removed."""
    folder = path if path.is_dir() else path.parent
    again = "Remove it and run the same command again: the step is repeated."
    made = (folder / QUANTIZED_FILE).exists() or folder.parent.suffix == PARTIAL
    return ModelError(f"'{path}' is damaged: {what}.", hint=again if made else "Fetch it again, or export it again.")
