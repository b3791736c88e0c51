"""Opens a quantized checkpoint on packed weights: `rqat.load_packed`.

No quantizer of transformers is involved: the model is built empty from config.json, its quantized linear layers are
replaced, and everything else is read as it is. What comes out is a plain Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rqat_kernels.packed_linear import PackedLinear
from rqat_kernels.packing import PackedWeight

from ..contracts import QuantizedWeight
from ..errors import ModelError
from ..figures import few
from ..keys import ModelKeys
from ..model.checkpoint import DENSE_FILE, decoded, load_layers, scheme_of, settings_in
from ..model.config import ModelConfig, read_config
from ..model.devices import default_dtype, device_called, without_values
from ..model.experts import separate_experts
from ..model.families import FAMILIES
from ..model.finite import check_finite
from ..model.hub import GENERATION_FILE, QUANTIZED_FILE
from ..model.layers import EMBEDDING, ENDS, HEAD
from ..model.load import check_tokenizer, load_tokenizer
from ..model.native import is_native, read_native
from ..model.stored import StoredTensors
from ..model.stored_schemes import NATIVE, is_quantized
from ..model.tensors import damaged, read_tensors
from ..model.transforms import load_transforms
from .formats import ANOTHER, can_pack, check_native, pack_layer, reader

if TYPE_CHECKING:
    import transformers


def load_packed(
    path: str | Path,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Loads a quantized checkpoint on packed weights, in eval mode, and its tokenizer.

    Args:
        path: an exported checkpoint (rqat, compressed-tensors or gptq), a step of a run, or a hub name of the former.
        device: "cuda", "cuda:1", "cpu"; None: CUDA where there is one.
        dtype: of activations and of what is not quantized; None: bfloat16 on CUDA, float32 on the CPU. On the CPU, one
            or two rows read packed weights; for more, these are dequantized once.

    Returns:
        A Hugging Face model whose quantized layers are `rqat_kernels.packed_linear.PackedLinear`.

    Raises:
        ModelError: the checkpoint is not quantized, or not in a way that can be packed; it is damaged or incomplete;
            there is no such device.
    """
    place = device_called(device)
    keys = ModelKeys(path=str(path), revision=revision)
    config = read_config(keys, offline=offline)
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"'{path}' is of the family '{config.model_type}'; packed models are {', '.join(FAMILIES)}.", hint=ANOTHER
        )
    if not is_quantized(config):
        raise ModelError(
            f"'{path}' is not quantized: its config.json has no quantization_config.",
            hint="Name an exported checkpoint or a step of a run, or use --backend transformers.",
        )
    folder = config.fetch(offline=offline)
    hooked = [one.name for one in load_transforms(folder) if one.hooked()]
    if hooked:
        raise ModelError(
            f"'{path}' was made with {', '.join(hooked)}, whose forward hooks packed layers do not run.",
            hint="Use --backend transformers.",
        )
    tokenizer = load_tokenizer(keys, offline=offline)
    dtype = dtype or default_dtype(place.type)
    layers, dense = _contents(config, folder, place, dtype)
    model = _build(keys.path, folder, layers, dense, dtype, place)
    check_tokenizer(keys.path, model, tokenizer)
    check_finite(keys.path, model)
    return model, tokenizer


def why_not_packed(config: ModelConfig) -> str:
    """Why an exported checkpoint cannot be packed, in a sentence; empty where it can be."""
    path, quantization = config.keys.path, config.quantization
    if quantization is None:
        return f"'{path}' is not quantized."
    if config.model_type not in FAMILIES:
        return f"Packed models are {', '.join(FAMILIES)}, not {config.model_type}."
    try:
        check_native(path, quantization) if quantization.get("quant_method") == NATIVE else reader(path, quantization)
    except ModelError as error:
        return error.message
    return ""


def _contents(
    config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, PackedWeight], dict[str, Tensor]]:
    """Packed layers by name, on `device`, and all other tensors, on the CPU."""
    path = config.keys.path
    if (folder / QUANTIZED_FILE).is_file():
        state = read_tensors(folder / DENSE_FILE)[0]
        return _packed(config, load_layers(folder / QUANTIZED_FILE), state, device, dtype)
    if is_native(folder):
        return _packed(config, *read_native(folder), device, dtype)
    assert config.quantization is not None
    form = reader(path, config.quantization)
    stored = StoredTensors(folder)
    names = [name.removesuffix(f".{form.key}") for name in stored.names if name.endswith(f".{form.key}")]
    if not names:
        raise damaged(folder, f"no tensor is called <layer>.{form.key}, as config.json says")
    packed, taken = {}, set()
    for name in names:
        suffixes = form.suffixes(name)
        parts = {suffix: stored.read(f"{name}.{suffix}") for suffix in suffixes}
        taken |= {f"{name}.{suffix}" for suffix in suffixes}
        try:
            packed[name] = form.pack(name, {suffix: part.to(device) for suffix, part in parts.items()})
        except (ValueError, RuntimeError, IndexError) as error:
            raise damaged(folder, f"{name}: {' '.join(str(error).split())[:200]}") from error
    return packed, {name: stored.read(name) for name in stored.names if name not in taken}


def _packed(
    config: ModelConfig,
    layers: Mapping[str, QuantizedWeight],
    dense: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[dict[str, PackedWeight], dict[str, Tensor]]:
    """Layers that are there as codes, packed, and all other tensors.

    A row of the embedding is read at a time, so it stays dense, in `dtype`. The head is packed where kernels read its
    scheme, though it be the same weight; so in memory a tied pair is two.
    """
    packed: dict[str, PackedWeight] = {}
    for name, layer in layers.items():
        if name not in ENDS:
            packed[name] = pack_layer(config.keys.path, layer, device)
            continue
        fits = can_pack(scheme_of(layer))
        if name == EMBEDDING or not fits:
            dense[f"{name}.weight"] = decoded(layer, dtype)
        if fits and (name == HEAD or config.tied):
            packed[HEAD] = pack_layer(config.keys.path, layer, device)
    return packed, dense


def _build(
    path: str,
    folder: Path,
    layers: Mapping[str, PackedWeight],
    dense: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> transformers.PreTrainedModel:
    """An empty model, filled."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        if HEAD in layers:  # a packed head has a weight of its own
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with without_values():
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
            separate_experts(model)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise damaged(folder, " ".join(str(error).split())[:300]) from error
    state = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype) for name, tensor in dense.items()
    }
    for name, weight in layers.items():
        _replace(folder, model, name, weight, state)
    # Missing are tied weights, and those of packed layers; what else is missing is still empty afterwards.
    unexpected = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty or unexpected:
        wrong = [f"{name} is missing" for name in empty] + [f"{name} is unknown" for name in unexpected]
        raise damaged(folder, few(wrong, 5))
    model.config._name_or_path = path
    if (folder / GENERATION_FILE).is_file():
        model.generation_config = settings_in(folder)
    model.requires_grad_(False)
    return model.to(device).eval()


def _replace(folder: Path, model: nn.Module, name: str, weight: PackedWeight, state: dict[str, Tensor]) -> None:
    """Puts a packed layer where the linear layer called so was; takes its bias out of `state`."""
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        linear = None
    if not isinstance(linear, nn.Linear) or linear.weight.shape != (weight.out_features, weight.in_features):
        found = f"{weight.out_features} x {weight.in_features}"
        wanted = " x ".join(map(str, linear.weight.shape)) if isinstance(linear, nn.Linear) else "no linear layer"
        raise damaged(folder, f"{name} is {found}, and {wanted} in config.json")
    bias = state.pop(f"{name}.bias", None)
    if bias is None and linear.bias is not None:
        raise damaged(folder, f"{name}.bias is missing")
    if bias is not None and linear.bias is None and not bool(bias.any()):
        bias = None  # some writers of gptq store a bias of zeros everywhere
    model.set_submodule(name, PackedLinear(weight, bias))
