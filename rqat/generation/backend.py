"""Who writes completions: transformers' `generate`, or the engine, which is many times faster on CUDA."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch

from rqat_kernels.packed_linear import PackedLinear

from ..contracts.options import expanded
from ..errors import ModelError
from ..model.checkpoint import load_checkpoint, settings_in
from ..model.config import read_config
from ..model.devices import default_dtype
from ..model.hub import FETCHED, GENERATION_FILE, QUANTIZED_FILE, fetch, resolve
from ..model.load import explained, load_model
from ..model.tokenizers import tokenizer_in
from ..packed.fused import is_bare, is_plain
from ..packed.load import load_packed, why_not_packed
from .engine import Engine
from .server_writer import ServedModel
from .transformers_writer import PIECE_TOKENS, TransformersWriter

if TYPE_CHECKING:
    import transformers

    from ..keys import ModelKeys
    from .writer import Writer

Backend = Literal["auto", "transformers", "packed"]
"""auto: the engine on CUDA where it knows the model, transformers elsewhere; packed: the engine, on packed weights."""

log = logging.getLogger("rqat")


def open_model(
    keys: ModelKeys, *, device: str, offline: bool = False, backend: Backend = "auto"
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model to write with, and its tokenizer: an exported one on packed weights where that is asked for or better.

    transformers may keep the layers of an exported checkpoint compressed, each of its own class; on CUDA, "auto" packs
    them, if they are of a format that can be packed. A step of a run is a model, too.

    Raises:
        ModelError: there is none, or it is damaged; the backend is "packed", and it cannot be packed.
    """
    folder = expanded(keys.path)
    if backend != "packed" and (folder / QUANTIZED_FILE).is_file():
        checkpoint = load_checkpoint(folder, device=device, dtype=default_dtype(device, keys.dtype))
        return checkpoint.model, checkpoint.tokenizer
    if backend == "auto" and device.startswith("cuda"):
        config = read_config(keys, offline=offline)
        why = why_not_packed(config)
        if not why:
            backend = "packed"
        elif config.quantization is not None:
            log.warning("Layers stay as transformers loads them, which is slower: %s", why)
    if backend == "packed":
        dtype = default_dtype(device, keys.dtype)
        return load_packed(keys.path, device, dtype, revision=keys.revision, offline=offline)
    return load_model(keys, device=device, offline=offline, quantizable=False)


def open_served(keys: ModelKeys, *, offline: bool = False) -> tuple[ServedModel, transformers.PreTrainedTokenizerBase]:
    """What has to be known of a model that a server runs: its config and its tokenizer; no weights are read.

    Raises:
        ModelError: there is no such model, or its config or tokenizer is damaged.
    """
    import transformers

    small = [pattern for pattern in FETCHED if "safetensors" not in pattern]
    folder = resolve(keys) or fetch(keys, offline=offline, only=small)
    with explained(keys.path, "model"):
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=keys.trust_remote_code
        )
        tokenizer = tokenizer_in(folder, trust_remote_code=keys.trust_remote_code)
        own = (folder / GENERATION_FILE).is_file()
        generation = settings_in(folder) if own else None
    return ServedModel(config, generation, torch.device("cpu")), tokenizer


def writer_for(
    model: transformers.PreTrainedModel,
    backend: Backend = "auto",
    *,
    rows: int | None = None,
    piece: int | None = PIECE_TOKENS,
) -> Writer:
    """What writes completions with a model.

    With "auto", a model that the engine does not know is left to transformers, and the log says why.

    Args:
        rows, piece: for transformers, see `TransformersWriter`; the engine finds room by itself.

    Raises:
        ModelError: the backend is "packed", and the engine does not know the model.
    """
    if backend == "packed":
        return Engine(model)
    plain = TransformersWriter(model, rows=rows, piece=piece)
    if backend == "transformers" or model.device.type != "cuda":
        return plain
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
    return plain


def _unlike_plain(model: transformers.PreTrainedModel) -> str:
    """Why a model's layers are nothing to capture in a graph: a sentence, or nothing."""
    if model.dtype not in (torch.bfloat16, torch.float16):
        return f"The model is in {str(model.dtype).removeprefix('torch.')}; the engine is for 16 bits."
    inner: Any = model
    for name, layer in inner.named_modules():
        if not hasattr(layer, "in_features") or is_plain(layer):
            continue
        if isinstance(layer, PackedLinear) and is_bare(layer):
            continue
        return f"{name} is a {type(layer).__name__}{_difference(layer)}, not a plain linear layer."
    return ""


def _difference(layer: torch.nn.Module) -> str:
    if type(layer) is torch.nn.Linear and layer._parameters.get("weight") is None:
        return " without a weight"
    return "" if is_bare(layer) else " with hooks"
