"""Quantized checkpoints of other tools as a start: which layers they hold, and at which schemes. Imports no torch.

    gptq                 GPTQModel, AutoGPTQ: versions 1 and 2, 2, 3, 4 and 8 bits, groups in order
    awq                  AutoAWQ, GPTQModel: GEMM, 4 bits
    compressed-tensors   llm-compressor: pack-quantized, groups or rows, one or several schemes
    mlx                  mlx_lm: affine, 2, 3, 4 and 8 bits, one or several schemes, the embedding included

What cannot be taken over says why from config.json and the headers of the files alone. `foreign_layers.py` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ModelError
from ..scheme import BITS, ROW, Scheme
from ..storage import read_json
from .config import MLX, Tensor, read_header, weight_files
from .config_groups import group_of, unread
from .families import layout_of
from .foreign_shapes import misfit, orphan
from .layers import EMBEDDING, HEAD

KEYS = {"gptq": "qweight", "awq": "qweight", "compressed-tensors": "weight_packed", MLX: "scales"}
"""The tensor that every quantized layer has, by `quant_method`."""

PACKED = "pack-quantized"
"""The one `format` of compressed-tensors that is read; a layer with packed weights has it where nothing is said."""

FLOATS = ("F16", "BF16", "F32")
"""What MLX's scales and biases may be, as headers spell it."""

TRIED = (7, 6)
"""GPTQModel's release since which, as far as is known, zero points of 3 bits are counted modulo 8."""

ANOTHER = "Dequantize it, or begin with the model it was made from."


@dataclass(frozen=True)
class Foreign:
    """A checkpoint that can be taken over.

    Attributes:
        method: its `quant_method`, which is also the name of our exporter of the format.
        schemes: of every quantized layer, by full name, in the order data passes them.
        options: of that exporter, so that it decodes this variant.
        borrows: whether these are zero points of GPTQ version 1 that GPTQModel has taken 1 off, of which 0 may be one.
    """

    method: str
    schemes: Mapping[str, Scheme]
    options: Mapping[str, Any] = field(default_factory=dict)
    borrows: bool = False


def is_foreign(quantization: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is of a method that is read here."""
    return quantization.get("quant_method") in KEYS


def foreign(folder: Path, quantization: Mapping[str, Any]) -> Foreign:
    """Looks at a folder whose config.json has this `quantization_config`.

    Raises:
        ModelError: a file is missing, a variant of the method that is not read, or parts that do not fit.
    """
    tensors = _headers(folder)
    found = _understood(folder, quantization, tensors)
    _refuse_misfits(folder, found, tensors)
    return found


def why_not_taken_over(folder: Path, quantization: Mapping[str, Any]) -> str:
    """Why a checkpoint is of no variant that can be taken over, in a sentence; empty where it is of one.

    Raises:
        ModelError: it has parts that do not fit, which are named.
    """
    if not is_foreign(quantization):
        return f"'{folder}' is a checkpoint of the format {quantization.get('quant_method')}, which is not taken over."
    tensors = _headers(folder)
    try:
        found = _understood(folder, quantization, tensors)
    except ModelError as error:  # which others may read
        _refuse(folder, _misfits("compressed-tensors", _of_other_widths(folder, quantization, tensors), tensors))
        return error.message
    _refuse_misfits(folder, found, tensors)
    return ""


def _headers(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}


def _refuse_misfits(folder: Path, found: Foreign, tensors: Mapping[str, Tensor]) -> None:
    _refuse(folder, orphan(found.method, found.schemes, tensors) or _misfits(found.method, found.schemes, tensors))


def _misfits(method: str, schemes: Mapping[str, Scheme], tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the first layer whose tensors do not fit; empty if all do."""
    return next((text for name, scheme in schemes.items() if (text := misfit(method, name, scheme, tensors))), "")


def _refuse(folder: Path, wrong: str) -> None:
    if wrong:
        raise ModelError(f"'{folder}': {wrong}.", hint=f"It is damaged: fetch it again. {ANOTHER}")


def _understood(folder: Path, quantization: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Foreign:
    method = str(quantization["quant_method"])
    names = list(_layers(folder, tensors, KEYS[method]))
    if not names:
        raise ModelError(f"'{folder}' has no tensor called <layer>.{KEYS[method]}.", hint="Fetch it again.")
    try:
        return _parsed(folder, method, names, tensors, quantization)
    except ValidationError as error:  # of a scheme
        wrong = (f"{'.'.join(map(str, one['loc']))} {one['input']!r:.60}" for one in error.errors())
        raise _refused(folder, method, ", ".join(wrong)) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        why = " ".join(f"{error!r:.200}".split())
        raise _refused(folder, method, f"a config.json that is not understood ({why})") from error


def _parsed(
    folder: Path, method: str, names: list[str], tensors: Mapping[str, Tensor], quantization: Mapping[str, Any]
) -> Foreign:
    if method == "compressed-tensors":
        for key in ("transform_config", "sparsity_config"):  # its weights are not all there is to the model
            if quantization.get(key) and quantization[key] != {"format": "dense"}:
                raise _refused(folder, method, f"a {key}")
        return Foreign(method, {name: _compressed(folder, name, quantization) for name in names})
    if method == MLX:
        return Foreign(method, {name: _mlx(folder, name, tensors, quantization) for name in names})
    given = _gptq(folder, quantization) if method == "gptq" else _awq(folder, quantization)
    borrows = method == "gptq" and _borrows(quantization)
    options = {"checkpoint_format": "gptq_v2" if borrows else _version(quantization)} if method == "gptq" else {}
    return Foreign(method, dict.fromkeys(names, given), options, borrows)


def _layers(folder: Path, tensors: Iterable[str], key: str) -> Iterator[str]:
    """Layers that have a tensor of this name, in the order data passes them; of MLX the embedding, too.

    Raises:
        ModelError: one of them is none that rqat quantizes.
    """
    found = {name.removesuffix(f".{key}") for name in tensors if name.endswith(f".{key}")}
    config = read_json(folder / "config.json")
    layout = layout_of(config)
    known = [
        *([EMBEDDING] if key == KEYS[MLX] else []),
        *layout.layer_names(int(config.get("num_hidden_layers", 0))),
        HEAD,
    ]
    strange = sorted(found - {*known})
    if strange:
        raise ModelError(f"'{folder}' has a quantized {strange[0]}, which rqat does not quantize.", hint=ANOTHER)
    yield from (name for name in known if name in found)


def _gptq(folder: Path, given: Mapping[str, Any]) -> Scheme:
    version, group = _version(given), given.get("group_size", ROW)
    if version not in ("gptq", "gptq_v2"):
        raise _refused(folder, "gptq", f"checkpoint_format '{version}'")
    if given.get("desc_act") and not given.get("static_groups") and group != ROW:  # with those, `g_idx` tells
        raise _refused(folder, "gptq", "its input features in another order (desc_act)")
    own = [pattern for pattern in given.get("dynamic") or {} if not str(pattern).startswith("-:")]
    if own:
        raise _refused(folder, "gptq", f"layers with settings of their own ({own[0]})")
    return Scheme(bits=given["bits"], group=group, symmetric=bool(given.get("sym", True)))


def _version(given: Mapping[str, Any]) -> str:
    """Of gptq: GPTQModel has called it by both names; AutoGPTQ writes none."""
    return str(given.get("checkpoint_format") or given.get("format") or "gptq")


def _borrows(given: Mapping[str, Any]) -> bool:
    """Whether GPTQModel took 1 off these zero points, 0 among them, in the way that is known."""
    if _version(given) != "gptq":
        return False
    tools = map(str, (given.get("meta") or {}).get("quantizer") or [])
    release = next((found for tool in tools if (found := re.match(r"gptqmodel:(\d+)\.(\d+)", tool))), None)
    return release is not None and (given["bits"] != 3 or (int(release[1]), int(release[2])) >= TRIED)


def _awq(folder: Path, given: Mapping[str, Any]) -> Scheme:
    version, bits = str(given.get("version", "gemm")).lower(), given.get("bits", given.get("w_bit"))
    if version != "gemm" or bits != 4 or not given.get("zero_point", True):
        raise _refused(folder, "awq", f"version {version}, {bits} bits, zero_point {given.get('zero_point', True)}")
    return Scheme(bits=bits, group=given.get("group_size", given.get("q_group_size", 128)))


def _compressed(folder: Path, name: str, given: Mapping[str, Any]) -> Scheme:
    """The scheme of a layer of compressed-tensors."""
    group = group_of(name, given)
    if group is None:
        raise _refused(folder, "compressed-tensors", f"{name} in no group of layers")
    packing = _packing(group, given)
    if packing != PACKED:
        raise _refused(folder, "compressed-tensors", f"format '{packing}'")
    if wrong := unread(group):
        raise _refused(folder, "compressed-tensors", wrong)
    weights = group["weights"]
    return Scheme(bits=weights["num_bits"], group=_size(weights), symmetric=weights.get("symmetric", True))


def _packing(group: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    return group.get("format") or given.get("format") or PACKED


def _size(weights: Mapping[str, Any]) -> Any:
    return ROW if weights["strategy"] == "channel" else weights["group_size"]


def _of_other_widths(folder: Path, given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Scheme]:
    """Layers of compressed-tensors that rqat does not read but for their bits, which others pack alike, as described.

    Their readers look at no shape: at other bits than its own a layer is read as another one, or ends the work.
    """
    found: dict[str, Scheme] = {}
    if given.get("quant_method") != "compressed-tensors":
        return found
    with suppress(ModelError, TypeError, ValueError, AttributeError, KeyError):  # which their reader tells
        for name in _layers(folder, tensors, KEYS["compressed-tensors"]):
            group = group_of(name, given)
            if group is None or unread(group) or _packing(group, given) != PACKED:
                continue
            weights = group["weights"]
            bits, size = weights.get("num_bits", 8), _size(weights)
            if bits in range(1, 9) and (size == ROW or size > 0):
                found[name] = Scheme.model_construct(bits=bits, group=size, symmetric=weights.get("symmetric", True))
    return found


def _mlx(folder: Path, name: str, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> Scheme:
    """The scheme of a layer of MLX: what is said of it, else of all; its tensors must be of the shape for it."""
    own = given.get(name)
    settings = own if isinstance(own, Mapping) else given
    mode, bits, group = settings.get("mode", "affine"), settings["bits"], settings["group_size"]
    if mode != "affine":
        raise _refused(folder, MLX, f"{name} in mode {mode}")
    if bits not in BITS:
        raise _refused(folder, MLX, f"{name} at {bits} bits")
    if f"{name}.biases" not in tensors:
        raise _refused(folder, MLX, f"{name} without biases")
    words, scales, biases = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    if (
        words.dtype != "U32"
        or scales.dtype not in FLOATS
        or (scales.shape, scales.dtype) != (biases.shape, biases.dtype)
    ):
        raise _refused(folder, MLX, f"{name} in {words.dtype}, {scales.dtype} and {biases.dtype}")
    (out, width), (rows, groups) = words.shape, scales.shape
    if out != rows or width * 32 != groups * group * bits:
        text = f"{name} of {width} words and {groups} groups, which are not {bits} bits in groups of {group}"
        raise _refused(folder, MLX, text)
    return Scheme(bits=bits, group=group)


def _refused(folder: Path, method: str, what: str) -> ModelError:
    return ModelError(f"'{folder}' is {method} with {what}, which is not taken over.", hint=ANOTHER)
