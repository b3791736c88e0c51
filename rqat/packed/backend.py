"""Who writes completions: transformers' `generate`, or the engine, which is many times faster on CUDA."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from rqat_kernels.packed_linear import PackedLinear

from ..errors import ModelError
from .engine import Engine

if TYPE_CHECKING:
    import transformers

Backend = Literal["auto", "transformers", "packed"]
"""auto: the engine on CUDA where it knows the model, transformers elsewhere; packed: the engine, on packed weights."""

log = logging.getLogger("rqat")


def writer_for(model: transformers.PreTrainedModel, backend: Backend = "auto") -> Engine | None:
    """What writes completions in place of the model's own `generate`; None where that writes them itself.

    With "auto", a model that the engine does not know is left to transformers, and the log says why.

    Raises:
        ModelError: the backend is "packed", and the engine does not know the model.
    """
    if backend == "packed":
        return Engine(model)
    if backend == "transformers" or model.device.type != "cuda":
        return None
    why = ""
    try:
        why = _unlike_plain(model)
        if not why:
            return Engine(model)
    except ModelError as error:
        why = error.message
    except torch.OutOfMemoryError:
        why = "There is too little memory to put its layers side by side."
    log.warning("Completions are written by transformers' generate, which is slower: %s", why)
    return None


def written_by(writer: object | None, backend: Backend = "auto") -> str:
    """What results call it: "transformers", "engine" (on 16-bit weights), or "packed"."""
    return "packed" if backend == "packed" else "transformers" if writer is None else "engine"


def _unlike_plain(model: transformers.PreTrainedModel) -> str:
    """Why a model's layers are nothing to capture in a graph: a sentence, or nothing."""
    if model.dtype not in (torch.bfloat16, torch.float16):
        return f"The model is in {str(model.dtype).removeprefix('torch.')}; the engine is for 16 bits."
    inner: Any = model
    for name, layer in inner.named_modules():
        if hasattr(layer, "in_features") and type(layer) is not nn.Linear and not isinstance(layer, PackedLinear):
            return f"{name} is a {type(layer).__name__}, not a plain linear layer."
    return ""
