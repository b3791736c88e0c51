"""A folder in the format `rqat`, in which every quantized weight is packed, the embedding included: how it is read.

What is in it is the exporter's business (`plugins/rqat_native.py`), which also decodes it; here it becomes layers
again, and a plain Hugging Face model that holds their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import Exporter, QuantizedWeight
from ..errors import ModelError, RqatError
from ..registry import Registry
from ..scheme import Scheme
from ..storage import read_json
from .checkpoint import Checkpoint, assembled, load_checkpoint
from .devices import default_dtype
from .foreign import is_foreign
from .foreign_layers import load_foreign
from .stored import StoredTensors
from .stored_schemes import NATIVE, quantization_of
from .tensors import damaged

VERSION = 1
"""Of the layout that is read here."""


def is_native(folder: Path) -> bool:
    """Whether a folder is in this format."""
    return quantization_of(folder).get("quant_method") == NATIVE


def load_quantized(folder: Path, *, device: str = "cpu") -> Checkpoint:
    """A quantized model with its codes: a step of a run, or an exported folder, also another tool's.

    Raises:
        ModelError: see `load_checkpoint` and `load_foreign`.
    """
    if is_native(folder):
        return load_native(folder, device=device)
    if is_foreign(quantization_of(folder)):
        return load_foreign(folder, device=device)
    return load_checkpoint(folder, device=device)


def load_native(folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Checkpoint:
    """Reads an exported folder as `load_checkpoint` reads a step of a run: the same model, layers and tokenizer.

    Args:
        dtype: of the model in memory; None is float32 on CPU and bfloat16 on CUDA.

    Raises:
        ModelError: a file is missing or damaged, or was written by another version.
    """
    layers, state = read_native(folder)
    return assembled(folder, layers, state, device=device, dtype=dtype or default_dtype(device))


def read_native(folder: Path) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """The quantized layers by full name, each with its scheme, and all other tensors; on the CPU.

    Raises:
        ModelError: see `load_native`.
    """
    quantization: Mapping[str, Any] = (read_json(folder / "config.json") or {}).get("quantization_config") or {}
    if quantization.get("version") != VERSION:
        raise ModelError(
            f"'{folder}' has version {quantization.get('version')} of the format {NATIVE}; this rqat reads {VERSION}.",
            hint="Use the version of rqat that wrote it, or export the model again.",
        )
    exporter, stored = _exporter(), StoredTensors(folder)
    layers: dict[str, QuantizedWeight] = {}
    taken: set[str] = set()
    try:
        for name, spelled in quantization["layers"].items():
            own = [key for key in stored.names if key.startswith(f"{name}.") and key != f"{name}.bias"]
            taken.update(own)
            layers[name] = exporter.decode(name, {key: stored.read(key) for key in own}, Scheme.parse(spelled))
    except ModelError:
        raise
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError, RqatError) as error:
        raise damaged(folder, " ".join(str(error).split())[:200]) from error
    return layers, {name: stored.read(name) for name in stored.names if name not in taken}


def native_layers(folder: Path) -> dict[str, Scheme]:
    """The scheme of every quantized layer of a folder in this format, by full name, as its config.json says."""
    quantization = (read_json(folder / "config.json") or {}).get("quantization_config") or {}
    return {name: Scheme.parse(spelled) for name, spelled in quantization.get("layers", {}).items()}


def _exporter() -> Exporter:
    """What writes the format, and so knows how to read it."""
    registry = Registry.current()
    card = registry.card("exporter", NATIVE)
    made: Exporter = registry.make(card, registry.options(card, {}))
    return made
