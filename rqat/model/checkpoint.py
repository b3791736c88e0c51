"""A quantized model between two stages: codes, scales and zero points beside everything that is not quantized.

    config.json, generation_config.json, tokenizer files
    model.safetensors        every tensor that is not a quantized weight
    quantized.safetensors    <layer>.codes (O, I) uint8, <layer>.scale (O, G) float32, <layer>.zero (O, G) uint8, or
                             float32 where the grid's zero points are real numbers

A tensor of model.safetensors is stored in 16 bits when that holds all its values exactly, else in float32; so weights
of a bfloat16 checkpoint stay bfloat16 and trained ones stay float32. Saving and loading never moves a weight.
The same model gives the same bytes: safetensors orders tensors by itself, and the header's metadata is a single entry.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contracts import QuantizedWeight
from ..contracts.grids import PARTS
from ..errors import ModelError, RqatError
from ..grids import grid_of
from ..quiet import quiet_loading
from ..scheme import Scheme
from ..storage import sweep, write_text
from .devices import default_dtype
from .experts import separate_experts
from .extras import generation_settings
from .hf_folder import save_tokenizer
from .hub import GENERATION_FILE, QUANTIZED_FILE
from .stored_schemes import schemes_in
from .tensor_file import Lying
from .tensors import damaged, narrowest, open_tensors, read_tensors, write_tensors
from .tokenizers import tokenizer_in
from .transforms import Applied, attach_transforms, load_transforms, save_transforms

if TYPE_CHECKING:
    import transformers

FORMAT = 1
"""Version of this layout, written into quantized.safetensors."""

DENSE_FILE = "model.safetensors"

DECODED_AT_ONCE = 1 << 17
"""Weights that a CPU decodes at once: what stays in its cache takes half the time."""


@dataclass
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        model: a plain Hugging Face model in eval mode; weights of `layers` are `w_hat`.
        tokenizer: its tokenizer.
        layers: the quantized layers by full module name, on the CPU, each with its scheme.
        transforms: what the model went through before it was quantized; their hooks are attached.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    layers: dict[str, QuantizedWeight]
    transforms: list[Applied] = field(default_factory=list)


def save_checkpoint(
    folder: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    layers: Mapping[str, QuantizedWeight],
    transforms: Sequence[Applied] = (),
) -> None:
    """Writes a checkpoint into an existing folder; whoever calls gives the folder its final name.

    Args:
        layers: the quantized layers by full module name ("model.layers.0.self_attn.q_proj"), each with its scheme.
        transforms: what the model went through before.

    Raises:
        ValueError: a weight of the model is not what its codes decode to.
    """
    parameters = dict(model.named_parameters())
    for name, layer in layers.items():
        weight = parameters[f"{name}.weight"].detach()
        if not torch.equal(weight, decoded(layer.to(weight.device), weight.dtype)):
            raise ValueError(f"the weight of {name} is not what its codes decode to")
    quantized = {f"{name}.weight" for name in layers}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    dense: dict[str, Tensor | Lying] = {
        name: narrowest(tensor.detach().cpu()).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in quantized and name not in tied
    }
    sweep(folder)  # of a file whose writing was interrupted
    write_dense(folder, model, tokenizer, dense, transforms)
    save_layers(folder / QUANTIZED_FILE, layers)


def write_dense(
    folder: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    dense: Mapping[str, Tensor | Lying],
    transforms: Sequence[Applied] = (),
) -> None:
    """Writes all of a checkpoint but its quantized layers.

    Args:
        model: what says how it is configured; its weights are not looked at.
        dense: every tensor that is not a quantized weight, in the model's order, in the dtype it is kept in.
        transforms: what the model went through before.
    """
    write_tensors(folder / DENSE_FILE, dense, {"format": FORMAT})
    save_transforms(folder, transforms)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(tensor.dtype for tensor in dense.values() if tensor.dtype.is_floating_point)
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        # Not by save_pretrained, which refuses settings of which one makes another idle, as many checkpoints have them.
        write_text(folder / GENERATION_FILE, model.generation_config.to_json_string())
    save_tokenizer(tokenizer, folder)


def keep_generation_settings(source: Path, folder: Path) -> None:
    """Takes over a model's own generation_config.json as it is: transformers leaves out what it does not know."""
    if (source / GENERATION_FILE).is_file():
        shutil.copyfile(source / GENERATION_FILE, folder / GENERATION_FILE)


def load_checkpoint(folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Args:
        dtype: of the model in memory; None is float32 on CPU and bfloat16 on CUDA.

    Raises:
        ModelError: a file is missing or damaged, or was written by another version.
    """
    layers = load_layers(folder / QUANTIZED_FILE)
    state, _ = read_tensors(folder / DENSE_FILE)
    return assembled(folder, layers, state, device=device, dtype=dtype or default_dtype(device))


def assembled(
    folder: Path, layers: dict[str, QuantizedWeight], state: dict[str, Tensor], *, device: str, dtype: torch.dtype
) -> Checkpoint:
    """A model of quantized layers, all its other tensors, and the configuration and tokenizer in `folder`.

    Raises:
        ModelError: they do not belong together, or a file is missing or damaged.
    """
    import transformers

    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, layer in layers.items():
        state[f"{name}.weight"] = decoded(layer.to(device), dtype).cpu()  # a GPU decodes sooner than it is fed
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = tokenizer_in(folder)
        for key in ("quantization_config", "quantization"):  # the second is MLX's
            if hasattr(config, key):
                delattr(config, key)  # the weights are values here
        model_class = getattr(transformers, (config.architectures or [""])[0])
        with quiet_loading():
            model, loading = model_class.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises nearly every type
        raise damaged(folder, " ".join(str(error).split())[:300]) from error
    wrong = {
        **dict.fromkeys(loading["missing_keys"], "is missing"),
        **dict.fromkeys(loading["unexpected_keys"], "is unknown"),
    }
    if wrong:
        raise damaged(folder, ", ".join(f"{name} {what}" for name, what in sorted(wrong.items())))
    separate_experts(model)
    model.config._name_or_path = str(folder)
    if (folder / GENERATION_FILE).exists():  # else it is derived from config.json, which knows one end token only
        model.generation_config = settings_in(folder)
    model = model.to(device).eval()
    transforms = load_transforms(folder)
    attach_transforms(model, transforms)
    return Checkpoint(model, tokenizer, layers, transforms)


def settings_in(folder: Path) -> transformers.GenerationConfig:
    """A folder's generation settings; where transformers refuses them, its end tokens alone.

    Raises:
        ModelError: generation_config.json is damaged.
    """
    from transformers import GenerationConfig

    return ends_alone(folder).get("generation_config") or GenerationConfig.from_pretrained(
        folder, local_files_only=True
    )


def ends_alone(folder: Path) -> dict[str, Any]:
    """Where transformers refuses a model's generation settings: its end tokens, to load it with; else nothing."""
    from transformers import GenerationConfig

    settings = generation_settings(folder)
    try:
        if settings:
            GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, AttributeError, OSError):
        return {"generation_config": GenerationConfig(eos_token_id=settings.get("eos_token_id"))}
    return {}


def decoded(layer: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """`w_hat (O, I)` of a layer with a scheme, on its device: computed by its grid, then rounded once."""
    grid, (out, width) = grid_of(scheme_of(layer)), layer.codes.shape
    if layer.codes.device.type != "cpu" or grid.uniform:  # which decodes piece by piece itself
        return grid.decode_layer(layer).to(dtype)
    values, rows = torch.empty(out, width, dtype=dtype), max(1, DECODED_AT_ONCE // width)
    for start in range(0, out, rows):
        part = slice(start, start + rows)
        some = replace(layer, codes=layer.codes[part], scale=layer.scale[part], zero=layer.zero[part])
        values[part] = grid.decode_layer(some)
    return values


def scheme_of(layer: QuantizedWeight) -> Scheme:
    """The scheme of a layer that has gone through the host's hands, where every layer has one.

    Raises:
        ValueError: it has none.
    """
    if layer.scheme is None:
        raise ValueError("a quantized layer without a scheme: nothing says what its codes mean")
    return layer.scheme


def save_layers(path: Path, layers: Mapping[str, QuantizedWeight]) -> None:
    """Writes codes, scales, zero points and notes of quantized layers into one file."""
    tensors: dict[str, Tensor | Lying] = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer.contiguous().state().items()}
    notes = {name: layer.note for name, layer in layers.items() if layer.note}
    write_layers(path, tensors, {name: scheme_of(layer) for name, layer in layers.items()}, notes)


def write_layers(
    path: Path, tensors: Mapping[str, Tensor | Lying], schemes: Mapping[str, Scheme], notes: Mapping[str, str]
) -> None:
    """Writes the file of quantized layers.

    Its facts name the one scheme that all layers have, or else the scheme of each.

    Args:
        tensors: codes, scales and zero points, as `<layer>.<part>`.
        schemes: of every layer, in the order data passes them.
        notes: of the layers that have one.
    """
    different = {*schemes.values()}
    one = different.pop() if len(different) == 1 else None
    spelled = {name: str(scheme) for name, scheme in schemes.items()}
    facts = {
        "format": FORMAT,
        **({"grid": one.grid, "scheme": str(one)} if one else {"schemes": spelled}),
        "layers": list(schemes),
        "notes": dict(notes),
    }
    write_tensors(path, tensors, facts)


def load_layers(path: Path) -> dict[str, QuantizedWeight]:
    """Reads what `save_layers` wrote, without building a model.

    Raises:
        ModelError: the file is missing, damaged, or was written by another version.
    """
    file = LayerFile(path)
    return {name: file.layer(name) for name in file.schemes}


class LayerFile:
    """What `save_layers` wrote, read layer by layer.

    Attributes:
        schemes: the scheme of every layer, in the order data passes them.

    Raises:
        ModelError: the file is missing, damaged, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, facts = open_tensors(path)
        if facts.get("format") != FORMAT:
            raise ModelError(
                f"'{path}' has checkpoint format {facts.get('format')}; this version of rqat reads {FORMAT}.",
                hint="Run the step that wrote it again with this version.",
            )
        try:
            self.schemes: dict[str, Scheme] = schemes_in(facts)
        except (KeyError, TypeError, ValueError, AttributeError, RqatError) as error:
            written = ", ".join(f"{key} {facts[key]!r}" for key in ("grid", "scheme", "schemes") if key in facts)
            raise ModelError(
                f"'{path}' has {written or 'no scheme'}, unknown to this version.",
                hint="Use the version of rqat that wrote it.",
            ) from error
        for scheme in dict.fromkeys(self.schemes.values()):
            try:
                grid_of(scheme)
            except RqatError as error:
                raise ModelError(
                    f"'{path}' is on the grid '{scheme.grid}': {error.message}", hint="Install the plugin it is from."
                ) from error
        self._notes: dict[str, str] = facts["notes"]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """`(O, I)` of every layer."""
        shapes = {name: self._file.tensors[f"{name}.codes"].shape for name in self.schemes}
        return {name: (shape[0], shape[1]) for name, shape in shapes.items()}

    def layer(self, name: str) -> QuantizedWeight:
        """One layer, on the CPU.

        Raises:
            ModelError: a part of it is missing, or not on its scheme.
        """
        scheme = self.schemes[name]
        missing = [part for part in PARTS if f"{name}.{part}" not in self._file.tensors]
        if missing:
            raise damaged(self.path, f"{name}.{missing[0]} is missing")
        state = {part: self.part(name, part) for part in PARTS}
        out, width = state["codes"].shape
        expected = (out, scheme.groups(width))
        if (
            state["scale"].shape != expected
            or state["zero"].shape != expected
            or int(state["codes"].max()) > scheme.max_code
        ):
            raise damaged(self.path, f"{name} is not on {scheme}")
        return QuantizedWeight.from_state(state, scheme, self._notes.get(name, ""))

    def part(self, name: str, part: str) -> Tensor:
        """One of the parts that a layer consists of."""
        return self._file.read(f"{name}.{part}")
