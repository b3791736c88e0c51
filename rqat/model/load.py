"""Loads Hugging Face models: checked before, quiet while, and checked again after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError, NumericsError
from ..keys import ModelKeys
from ..quiet import quiet_loading
from .checkpoint import ends_alone
from .config import check_quantizable, read_config
from .devices import default_dtype
from .ends import is_tied
from .extras import check_checkpoint, check_loader, refuse_second_head, refuse_unasked, split_by_blocks
from .native import load_native
from .stored_schemes import NATIVE
from .tokenizers import tokenizer_in
from .vocabulary import past_the_embedding

if TYPE_CHECKING:
    import transformers


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
    if (config.quantization or {}).get("quant_method") == NATIVE:
        return load_native(folder, device=device, dtype=default_dtype(device, keys.dtype)).model, tokenizer
    with explained(keys.path, "model"), quiet_loading():
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=default_dtype(device, keys.dtype),
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=keys.trust_remote_code,
            **ends_alone(folder),
        )
    model, loading = loaded
    if loading["missing_keys"] or loading["mismatched_keys"]:
        names = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise ModelError(
            f"'{keys.path}' lacks weights that its config.json asks for: {', '.join(names[:5])}"
            f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}.",
            hint="The checkpoint is incomplete; fetch it again.",
        )
    if config.quantization is None:
        inside, _ = split_by_blocks(loading["unexpected_keys"], config)  # the others are told in the plan
        if inside:
            refuse_unasked(keys.path, inside)
        if config.tied and model.get_output_embeddings() is not None and not is_tied(model):
            refuse_second_head(keys.path)
    check_tokenizer(keys.path, model, tokenizer)
    model = model.to(device).eval()
    check_finite(keys.path, model)
    return model, tokenizer


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
def explained(path: str, what: str) -> Iterator[None]:
    """Turns what transformers says about a broken checkpoint into one line."""
    try:
        yield
    except Exception as error:  # tokenizers raises bare Exceptions, and transformers nearly every type
        raise ModelError(
            f"The {what} of '{path}' cannot be loaded: {' '.join(str(error).split())[:300]}",
            hint="Check that the folder is a complete Hugging Face checkpoint and that transformers knows this model.",
        ) from error


def check_tokenizer(
    path: str, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Refuses a tokenizer with ids the model has no embedding for."""
    vocabulary = next(model.get_input_embeddings().parameters()).shape[0]
    if max(tokenizer.get_vocab().values(), default=-1) >= vocabulary:
        raise past_the_embedding(path, tokenizer.get_vocab(), vocabulary)


def check_finite(path: str, model: transformers.PreTrainedModel) -> None:
    """Refuses weights that are NaN or infinite, naming the first such tensor."""
    stored = model.state_dict().keys()
    tensors = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    checked = {
        name: tensor
        for name, tensor in tensors.items()
        if name in stored and tensor.is_floating_point() and tensor.numel()
    }
    # In one pass over each, without a copy; all are fetched together, as a GPU has to be waited for.
    ends = [torch.stack(_wide(tensor).aminmax()).double() for tensor in checked.values()]
    finite = torch.isfinite(torch.stack(ends)).all(1).tolist() if ends else []
    for name, whole in zip(checked, finite, strict=True):
        if not whole:
            raise NumericsError(
                f"'{path}': the tensor {name} holds values that are not finite.",
                hint="The checkpoint is damaged or was trained to divergence; fetch it again or use another one.",
            )


def _wide(tensor: Tensor) -> Tensor:
    """A tensor in a dtype that has an order: those of 8 bits have none."""
    return tensor.float() if tensor.element_size() == 1 else tensor
