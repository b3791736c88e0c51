"""Proof that an exported folder is the quantized model it was written from: two checks on its files.

An exporter that can decode must give back every code, scale and zero point bit by bit. And where `from_pretrained` can
load the format here, it does, and logits are compared; of a model that is not small, what every block puts out (see
`blockwise.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contracts import Exporter, QuantizedWeight
from ..errors import ModelError, NumericsError, PluginError
from ..quiet import quiet_loading
from .blockwise import largest_difference, telling
from .checkpoint import decoded, ends_alone, load_checkpoint
from .devices import default_dtype
from .families import layout_of
from .memory import SMALL, available_bytes
from .native import is_native, native_layers
from .reader import CheckpointReader, one_ahead
from .stored import StoredTensors
from .tensor_file import same_bytes

if TYPE_CHECKING:
    import transformers

log = logging.getLogger("rqat")

BATCH, TOKENS = 2, 24
"""Shape of the random input on which logits are compared."""

DEVICE_TOLERANCE = 2.0**-5
"""Largest difference of logits, as a share of the largest one, off the CPU: there the model computes in bfloat16 (eight
significant bits), and kernels may sum in another order from one call to the next. A wrong zero point moves more."""


STEP_TOLERANCE = 1 / 8
"""Largest difference of a weight, in steps of its grid: rounding a bias or a value to 16 bits moves none by more."""


def check_layers(folder: Path, exporter: Exporter, name: str, reader: CheckpointReader) -> str:
    """Decodes every layer from the files and compares it bit by bit; says what was found.

    Args:
        name: of the format.

    Raises:
        PluginError: a layer is not what was exported.
    """
    if type(exporter).values is not Exporter.values:
        return _check_values(folder, exporter, name, reader)
    if type(exporter).decode is Exporter.decode:
        return f"not checked: exporter '{name}' has no decode"
    for layer, tensors, exact in one_ahead(_stored_layers(folder, reader)):
        decoded = exporter.decode(layer, tensors, reader.layers[layer]).state()
        for part, tensor in exact.state().items():
            if not same_bytes(decoded[part], tensor):
                raise PluginError(
                    f"exporter '{name}' changes the {part} of {layer}.",
                    hint="Its decode() is not the inverse of its tensors(); please report it to the plugin's author.",
                )
    return "every layer equal, bit by bit"


def _stored_layers(folder: Path, reader: CheckpointReader) -> Iterator[tuple[str, dict[str, Tensor], QuantizedWeight]]:
    """Every layer's name, its tensors in an exported folder, and what they should decode to."""
    stored, others = StoredTensors(folder), set(reader.names)
    own: dict[str, list[str]] = {layer: [] for layer in reader.layers}
    for key in stored.names:
        ends = (place for place, letter in enumerate(key) if letter == ".")
        layer = next((key[:end] for end in ends if key[:end] in own), None)
        if layer is not None and key not in others:
            own[layer].append(key)
    for layer, keys in own.items():
        yield layer, {key: stored.read(key) for key in keys}, reader.layer(layer)


def _check_values(folder: Path, exporter: Exporter, name: str, reader: CheckpointReader) -> str:
    """Of a format that is read by another library: how far weights are from those that were exported."""
    largest, most, left = 0.0, 0.0, set(reader.layers)
    for layer, values in exporter.values(folder, reader):
        left.discard(layer)
        weight = reader.layer(layer)
        exact, group = decoded(weight, torch.float32), weight.codes.shape[1] // weight.scale.shape[1]
        apart = values - exact
        difference = float((apart / weight.scale.repeat_interleave(group, 1)).abs().max())
        moved = float(apart.norm() / exact.norm()) if difference else 0.0
        if not (moved <= exporter.rounds_anew if exporter.rounds_anew else difference <= STEP_TOLERANCE):
            share = f", by {100 * moved:.2g} % in all" if exporter.rounds_anew else ""
            raise PluginError(
                f"exporter '{name}' changes the weights of {layer} by up to {difference:.3g} steps of its grid{share}.",
                hint="Do not use the file; please report it to the plugin's author.",
            )
        largest, most = max(largest, difference), max(most, moved)
    if left:
        raise PluginError(f"exporter '{name}' reads no weights of {min(left)}.", hint="Its values() leaves layers out.")
    if not largest:
        return "every weight equal, bit by bit"
    if exporter.rounds_anew:
        return f"rounded anew: layers differ by {100 * most:.2g} % at most, weights by {largest:.2g} steps of the grid"
    return f"weights differ by {largest:.2g} steps of the grid at most"


def check_logits(
    folder: Path, exporter: Exporter, reader: CheckpointReader, device: str, *, hint: str, every_block: bool = True
) -> dict[str, Any]:
    """Loads the folder as any user would and compares its logits with those of the checkpoint it was written from.

    Args:
        hint: what to do when transformers does not load it.
        every_block: of a model that is not small, look at all blocks, also where every layer was decoded before and
            was equal; else at those that tell something new, see `blockwise.telling`.

    Returns:
        `max_abs_diff` and `tolerance`, of logits, or of hidden states after the block where they differ the most, and
        in `reload` which of the two; or `max_abs_diff: None` and why it was not measured.

    Raises:
        ModelError: transformers does not load it.
        NumericsError: it is another model.
    """
    import transformers

    if is_native(folder):
        return _check_tensors(folder, reader)
    packages = exporter.loader_packages
    if packages and layout_of(reader.config).experts:
        return {"max_abs_diff": None, "reload": "not checked: transformers reads no packed experts"}
    missing = [name for name in packages or () if importlib.util.find_spec(name) is None]
    if packages is None or missing:
        why = f"{' and '.join(missing)} not installed" if missing else "transformers does not load this format"
        return {"max_abs_diff": None, "reload": f"not checked: {why}"}
    twice = 2 * reader.parameters * default_dtype(device).itemsize
    free = available_bytes(device)
    own = type(exporter).write is not Exporter.write  # in files that nobody knows how to take apart
    if own and free is not None and twice > free:
        return {"max_abs_diff": None, "reload": "not checked: the model does not fit into memory twice"}
    whole = own or twice <= SMALL
    how = f"transformers {transformers.__version__}"
    if ends_alone(folder):
        log.warning("transformers refuses the model's generation settings; they are exported as they are.")
    try:
        # Loaders draw progress bars of their own, each through another library.
        with quiet_loading(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            if whole:
                what, (difference, largest) = "logits", _of_logits(folder, exporter, reader, device)
            else:
                decoded_before = type(exporter).decode is not Exporter.decode
                count = reader.config.num_hidden_layers
                blocks = telling(reader) if decoded_before and not every_block else list(range(count))
                what, how = "hidden states", f"{how}, {len(blocks)} of {count} blocks"
                difference, largest = largest_difference(folder, exporter, reader, device, blocks)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"'{folder}' was written, but {how} does not load it: {' '.join(str(error).split())[:300]}.",
            hint=hint,
        ) from error
    share = exporter.loader_tolerance
    tolerance = largest * (share if device == "cpu" else max(share, DEVICE_TOLERANCE))
    if not difference <= tolerance:
        raise NumericsError(
            f"'{folder}' is not the model that was exported: its {what} differ by up to {difference:.3g} "
            f"(allowed: {tolerance:.3g}).",
            hint="Do not serve it. Try another checkpoint format, and report this with the versions of your packages.",
        )
    return {"max_abs_diff": difference, "tolerance": tolerance, "reload": how}


def _check_tensors(folder: Path, reader: CheckpointReader) -> dict[str, Any]:
    """Of a folder that rqat reads itself, layers apart: what is equal gives equal logits, without a model in memory.

    Raises:
        NumericsError: a tensor, or a layer's scheme, is another.
    """
    stored, layers = StoredTensors(folder), native_layers(folder)
    parts = {key for key in stored.names if key.rpartition(".")[0] in layers} - {*reader.names}
    wrong = {
        f"the scheme of {name}" for name in {*layers, *reader.layers} if layers.get(name) != reader.layers.get(name)
    }
    wrong |= ({*stored.names} - parts) ^ {*reader.names}
    wrong |= {name for name in reader.names if name not in wrong and not stored.holds(name, reader.lying(name))}
    if wrong:
        raise NumericsError(
            f"'{folder}' is not the model that was exported: {min(wrong)} differs.", hint="Do not use it; report this."
        )
    return {"max_abs_diff": 0.0, "tolerance": 0.0, "reload": "every tensor equal, bit by bit"}


def _of_logits(folder: Path, exporter: Exporter, reader: CheckpointReader, device: str) -> tuple[float, float]:
    """The largest difference of logits, and the largest logit."""
    import transformers

    checkpoint = load_checkpoint(reader.folder, device=device)
    _round(checkpoint.model, reader.unpacked, torch.bfloat16)
    if exporter.loader_dtype:
        _round(checkpoint.model, reader.layers, getattr(torch, exporter.loader_dtype))
    dtype, expected = checkpoint.model.dtype, logits_of(checkpoint.model)
    torch.nn.Module.to(checkpoint.model, "meta")  # frees its memory before the exported one is loaded
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, **ends_alone(folder)
    )
    found = logits_of(model.to(device).eval())
    return float((found - expected).abs().max()), float(expected.abs().max())


@torch.no_grad()
def _round(model: torch.nn.Module, layers: Iterable[str], dtype: torch.dtype) -> None:
    """Rounds weights to what a file holds of them: a value of a grid may need more bits than a dtype has."""
    for name in layers:
        weight = model.get_parameter(f"{name}.weight")
        weight.copy_(weight.to(dtype))


def logits_of(model: transformers.PreTrainedModel) -> Tensor:
    """Logits `(BATCH, TOKENS, V)`, float32 on the CPU, on tokens that depend on nothing but the vocabulary's size."""
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.randint(0, embeddings.num_embeddings, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=tokens.to(model.device)).logits.float().cpu()
