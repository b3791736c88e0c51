"""Reads the layers of a quantized checkpoint of another tool: `foreign.py` says which there are.

Codes, scales and zero points are taken as they are. Scales may need float16, or float32, where rqat's own hold in
bfloat16 as well; training moves them onto its own grid of scales at its first step, and no sooner.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rqat_kernels.packing import pack, unpack, words_for

from ..contracts import Exporter, QuantizedWeight
from ..errors import ModelError
from ..registry import Registry
from ..scheme import Scheme
from ..storage import read_json
from .checkpoint import Checkpoint, assembled
from .config import MLX, quantization_in
from .devices import default_dtype
from .extras import refuse_second_head
from .finite import refuse_not_finite
from .foreign import ANOTHER, foreign
from .foreign_shapes import OWN
from .layers import EMBEDDING, HEAD
from .packed_shapes import WORD, with_settings
from .stored import StoredTensors
from .tensors import damaged

PARTS = OWN | {MLX: ("weight", *OWN[MLX])}
"""Tensors that a quantized layer may have, by `quant_method`."""

CACHE = re.compile(r"\.self_attn\.[kqv]_(scale|zero_point)$")
"""Tensors of a quantized cache of keys and values, which is nothing to the weights."""

ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A word with a 1 in every value, by bits."""

DEAD = 2.0**-14
"""Scale given to a group of which every weight is 0, whose own scale may be 0."""


def load_foreign(folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Checkpoint:
    """The model with its layers, as `load_checkpoint` gives a step of a run.

    Args:
        dtype: of the model in memory; None is float32 on the CPU and bfloat16 on CUDA.

    Raises:
        ModelError: a file is missing or damaged, or holds what rqat cannot take over.
        NumericsError: a tensor is not finite.
    """
    import transformers

    about = foreign(folder, quantization_in(with_settings(folder, read_json(folder / "config.json"))) or {})
    registry, stored = Registry.current(), StoredTensors(folder)
    card = registry.card("exporter", about.method)
    exporter: Exporter = registry.make(card, registry.options(card, about.options))
    layers: dict[str, QuantizedWeight] = {}
    taken: set[str] = set()
    for name, scheme in about.schemes.items():
        own = {key: stored.read(key) for part in PARTS[about.method] if (key := f"{name}.{part}") in stored.names}
        taken.update(own)
        _check_order(folder, name, own, scheme)
        _check_words(folder, name, own, scheme)
        if about.borrows and f"{name}.qzeros" in own:
            own[f"{name}.qzeros"] = _given_back(own[f"{name}.qzeros"], scheme.bits)
        try:
            layers[name] = _checked(folder, name, exporter.decode(name, own, scheme))
            if scheme.symmetric and f"{name}.weight_zero_point" in own:  # which nobody reads then
                free = scheme.model_copy(update={"symmetric": False})
                _check_zeros(folder, name, exporter.decode(name, own, free), scheme)
        except KeyError as error:
            raise damaged(folder, f"{error.args[0]} is missing") from error
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise damaged(folder, f"{name}: {' '.join(str(error).split())[:200]}") from error
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    others = {name: stored.read(name) for name in stored.names if name not in taken and not CACHE.search(name)}
    others = _without_empty_biases(others, {*layers}, config)
    refuse_not_finite(str(folder), others.items())
    head, embedding = (others.get(f"{name}.weight") for name in (HEAD, EMBEDDING))
    if (
        config.get_text_config().tie_word_embeddings
        and head is not None
        and (embedding is None or not head.equal(embedding))
    ):
        refuse_second_head(str(folder))
    return assembled(folder, layers, others, device=device, dtype=dtype or default_dtype(device))


def _check_order(folder: Path, name: str, own: dict[str, Tensor], scheme: Scheme) -> None:
    """Refuses layers whose input features are not grouped in their order, whatever config.json says."""
    order = own.get(f"{name}.g_idx", own.get(f"{name}.weight_g_idx"))
    if order is not None and not order.long().equal(torch.arange(len(order)) // scheme.group_size(len(order))):
        raise ModelError(
            f"'{folder}': {name} has its input features in another order (desc_act), which is not taken over.",
            hint=ANOTHER,
        )


def _check_words(folder: Path, name: str, own: dict[str, Tensor], scheme: Scheme) -> None:
    """Refuses packed codes of another length: cut off, or in the layout of older releases of compressed-tensors.

    Those put ten values of 3 bits into each word.
    """
    if f"{name}.weight_packed" in own and f"{name}.weight_shape" in own:
        words, width = own[f"{name}.weight_packed"].shape[-1], int(own[f"{name}.weight_shape"][1])
    elif f"{name}.g_idx" in own and f"{name}.qweight" in own:
        words, width = len(own[f"{name}.qweight"]), own[f"{name}.g_idx"].numel()
    else:
        return
    if words != words_for(width, scheme.bits):
        raise ModelError(
            f"'{folder}': {name} has {words} words for {width} values of {scheme.bits} bits: it is damaged, or was "
            "written by an older release of its tool.",
            hint="Quantize it again with a newer one. " + ANOTHER,
        )


def _given_back(zeros: Tensor, bits: int) -> Tensor:
    """Zero points as version 2 holds them, of a file for which GPTQModel has taken 1 off each.

    It takes 1 off all values of a word at once, so that a 0 borrows from the value behind it; at 3 bits, of which some
    lie in two words, off each by itself, modulo 8.

    Args:
        zeros: `(G, words)` int32.
    """
    if bits in ONES:
        return zeros + ONES[bits]
    return pack((unpack(zeros, bits, zeros.shape[1] * WORD // bits) + 1) % (1 << bits), bits)


def _checked(folder: Path, name: str, layer: QuantizedWeight) -> QuantizedWeight:
    """A layer as it was decoded, if it means what our grid means by it.

    Raises:
        ModelError: zero points or scales that our grid does not have, or that readers disagree on.
    """
    scheme = layer.scheme
    assert scheme is not None
    _check_zeros(folder, name, layer, scheme)
    zero, scale = layer.zero, layer.scale
    if bool((zero > scheme.max_code).any()):
        raise ModelError(
            f"'{folder}': {name} has zero points of {scheme.levels}, on which readers of this format disagree.",
            hint=ANOTHER,
        )
    if not bool(scale.isfinite().all()) or bool((scale < 0).any()):
        raise ModelError(f"'{folder}': {name} has scales that are negative or not finite.", hint=ANOTHER)
    dead = scale == 0
    if not bool(dead.any()):
        return layer
    width = layer.codes.shape[1] // scale.shape[1]
    spread = dead.repeat_interleave(width, 1)
    codes = torch.where(spread, zero.repeat_interleave(width, 1), layer.codes)
    return replace(layer, codes=codes, scale=scale.masked_fill(dead, DEAD))


def _check_zeros(folder: Path, name: str, layer: QuantizedWeight, scheme: Scheme) -> None:
    """Refuses a layer that is symmetric by config.json, and not by its zero points."""
    if scheme.symmetric and bool((layer.zero != scheme.middle).any()):
        raise ModelError(f"'{folder}' says that it is symmetric, and {name} has other zero points.", hint=ANOTHER)


def _without_empty_biases(others: dict[str, Tensor], layers: set[str], config: Any) -> dict[str, Tensor]:
    """Other tensors without the biases of zeros that AutoGPTQ gives to layers which have none."""
    import transformers

    model_class: Any = getattr(transformers, (config.architectures or [""])[0], None)
    if model_class is None:
        return others
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        known = set(model_class(config).state_dict())
    return {
        name: tensor
        for name, tensor in others.items()
        if name in known or name.removesuffix(".bias") not in layers or bool(tensor.any())
    }
