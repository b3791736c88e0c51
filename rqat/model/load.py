"""Loads Hugging Face models: checked before, quiet while, and checked again after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from rqat_kernels.dispatch import one_thread

from ..errors import ModelError
from ..figures import few
from ..keys import ModelKeys
from ..quiet import quiet_loading
from .checkpoint import ends_alone
from .config import check_quantizable, read_config
from .devices import default_dtype, without_values
from .ends import is_tied
from .experts import separate_experts
from .extras import (
    check_checkpoint,
    check_loader,
    generation_settings,
    needs_decoding,
    refuse_second_head,
    refuse_unasked,
    split_by_blocks,
)
from .families import layout_of
from .finite import check_finite, refuse_not_finite
from .foreign_layers import load_foreign
from .native import load_native
from .stored import StoredTensors
from .stored_schemes import NATIVE
from .streaming import Streamed
from .tokenizers import tokenizer_in
from .vocabulary import past_the_embedding

if TYPE_CHECKING:
    import transformers

CHECK_FOLDER = "Check that the folder is a complete Hugging Face checkpoint and that transformers knows this model."
CHECK_QUANTIZATION = "Check quantization_config in its config.json, or fetch the model again."
"""What to do where transformers does not load a model."""


def load_model(
    keys: ModelKeys, *, device: str = "cpu", offline: bool = False, quantizable: bool = True
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Loads a model, in eval mode, and its tokenizer.

    Args:
        offline: nothing may be fetched.
        quantizable: refuse what cannot be quantized; False for models that are only evaluated.

    Raises:
        ModelError: the model or its tokenizer is missing, damaged or not supported, or the two do not belong together.
        NumericsError: a weight is not finite.
    """
    import transformers

    config = read_config(keys, offline=offline)
    if quantizable:
        check_quantizable(config)
    check_checkpoint(config)
    check_loader(config)
    tokenizer = load_tokenizer(keys, offline=offline)
    folder = config.fetch(offline=offline)
    native = (config.quantization or {}).get("quant_method") == NATIVE
    if native or needs_decoding(config):
        decode = load_native if native else load_foreign
        decoded = decode(folder, device=device, dtype=default_dtype(device, keys.dtype)).model
        check_tokenizer(keys.path, decoded, tokenizer)
        check_finite(keys.path, decoded)
        return decoded, tokenizer
    hint = CHECK_QUANTIZATION if config.quantization is not None else CHECK_FOLDER
    with explained(keys.path, "model", hint), quiet_loading():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=default_dtype(device, keys.dtype),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=keys.trust_remote_code,
            **ends_alone(folder),
        )
    model, loading = loaded
    _refuse_missing(keys.path, [*loading["missing_keys"], *loading["mismatched_keys"]])
    if config.quantization is None:
        inside, _ = split_by_blocks(loading["unexpected_keys"], config)  # the others are told in the plan
        if inside:
            refuse_unasked(keys.path, inside)
        if config.tied and model.get_output_embeddings() is not None and not is_tied(model):
            refuse_second_head(keys.path)
        separate_experts(model)
    check_tokenizer(keys.path, model, tokenizer)
    model = model.to(device).eval()
    if config.quantization is not None:
        with explained(keys.path, "model", hint), torch.no_grad():  # libraries unpack layers when they are first asked
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    check_finite(keys.path, model)
    return model, tokenizer


def open_model(
    keys: ModelKeys, *, device: str = "cpu", offline: bool = False
) -> tuple[Streamed, transformers.PreTrainedTokenizerBase]:
    """A model that is to be quantized, its weights left in their files until they are needed, and its tokenizer.

    Every weight is looked at once, so that a damaged model is refused before any work.

    Raises:
        ModelError, NumericsError: see `load_model`.
    """
    import transformers

    config = read_config(keys, offline=offline)
    check_quantizable(config)
    check_checkpoint(config)
    tokenizer = load_tokenizer(keys, offline=offline)
    folder = config.fetch(offline=offline)
    trusted = {"trust_remote_code": keys.trust_remote_code}
    with explained(keys.path, "model"), quiet_loading():
        settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **trusted)
        with without_values():
            model: Any = transformers.AutoModelForCausalLM.from_config(
                settings, dtype=default_dtype(device, keys.dtype), **trusted
            )
            separate_experts(model)
        model.tie_weights()
        if generation_settings(folder):
            own = ends_alone(folder).get("generation_config")
            read = transformers.GenerationConfig.from_pretrained
            model.generation_config = own or read(folder, local_files_only=True)
    stored = StoredTensors(folder)
    if is_tied(model) and _has_second_head(model, stored):
        refuse_second_head(keys.path)
    asked = dict(model.named_parameters(remove_duplicate=False))
    tied = asked.keys() - dict(model.named_parameters()).keys()
    _refuse_missing(keys.path, [name for name in asked if name not in stored.tensors and name not in tied])
    for name, parameter in asked.items():
        if name in stored.tensors and stored.tensors[name].shape != parameter.shape:
            raise ModelError(
                f"The model of '{keys.path}' cannot be loaded: {name} is {tuple(stored.tensors[name].shape)}, and "
                f"{tuple(parameter.shape)} by its config.json.",
                hint="The checkpoint is damaged; fetch it again.",
            )
    inside, _ = split_by_blocks([name for name in stored.tensors if name not in asked], config)
    if inside:
        refuse_unasked(keys.path, inside)
    check_tokenizer(keys.path, model, tokenizer)
    there = [name for name in asked if name in stored.tensors]
    with one_thread():
        refuse_not_finite(keys.path, ((name, piece) for name in there for piece in stored.pieces(name)))
    return Streamed(model.eval(), stored, device), tokenizer


def _has_second_head(model: transformers.PreTrainedModel, stored: StoredTensors) -> bool:
    """Whether the files hold another head than the embedding that it is tied to."""
    layout = layout_of(model.config)
    names = [f"{name}.weight" for name in (layout.embeddings, layout.head)]
    return stored.tensors.keys() >= {*names} and not torch.equal(*map(stored.read, names))


def _refuse_missing(path: str, missing: Iterable[Any]) -> None:
    """Refuses a model whose files lack weights of it."""
    names = sorted(map(str, missing))
    if names:
        raise ModelError(
            f"'{path}' lacks weights that its config.json asks for: {few(names, 5)}.",
            hint="The checkpoint is incomplete; fetch it again.",
        )


def load_tokenizer(keys: ModelKeys, *, offline: bool = False) -> transformers.PreTrainedTokenizerBase:
    """Loads a tokenizer alone.

    Raises:
        ModelError: it is missing, damaged or has no end-of-sequence token.
    """
    folder = read_config(keys, offline=offline).fetch(offline=offline)
    with explained(keys.path, "tokenizer"):
        tokenizer = tokenizer_in(folder, trust_remote_code=keys.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of '{keys.path}' has no end-of-sequence token.",
            hint="Set eos_token in tokenizer_config.json.",
        )
    return tokenizer


@contextmanager
def explained(path: str, what: str, hint: str = CHECK_FOLDER) -> Iterator[None]:
    """Turns what transformers says about a broken checkpoint into one line."""
    try:
        yield
    except Exception as error:  # tokenizers raises bare Exceptions, and transformers nearly every type
        text = " ".join(_told(error).split())
        raise ModelError(
            f"The {what} of '{path}' cannot be loaded: {text[:300]}",
            hint=hint,
        ) from error


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"transformers finds no {error}"
    if isinstance(error, ValidationError):  # of compressed-tensors, for config.json; what follows is of the same key
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"] if "[" not in str(each))
        wrong = first["msg"].removeprefix("Value error, ")
        return f"config.json, quantization_config.{place} {first['input']!r:.60}: {wrong}"
    return str(error) or type(error).__name__


def check_tokenizer(
    path: str, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Refuses a tokenizer with ids the model has no embedding for."""
    vocabulary = next(model.get_input_embeddings().parameters()).shape[0]
    if max(tokenizer.get_vocab().values(), default=-1) >= vocabulary:
        raise past_the_embedding(path, tokenizer.get_vocab(), vocabulary)
