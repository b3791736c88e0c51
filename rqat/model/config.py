"""What can be known about a model without loading it: its config.json and the headers of its safetensors files.

Nothing here imports torch or transformers, so that `rqat plan` can check a model within a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..figures import few
from ..keys import ModelKeys
from .families import EXPERTS, FAMILIES, Layout, layout_of
from .hub import (
    INDEX,
    QUANTIZED_FILE,
    SINGLE,
    TOKENIZERS,
    complete,
    fetch,
    read_remote,
    refuse_pointers,
    resolve,
    shard_names,
)
from .packed_shapes import packed_shape, parameters_of, with_settings
from .vocabulary import past_the_embedding, read_vocabulary

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_LARGEST_HEADER = 100_000_000

SIZES = {
    "num_hidden_layers": 10_000,
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim"), 1 << 24),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 1 << 16),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 1 << 31),
}
"""Sizes in config.json that are computed with, and what they are at most."""

MLX = "mlx"
"""What a quantization is called here whose config.json, being MLX's, names no `quant_method`."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, as its header describes it: `dtype` in safetensors' spelling ("BF16")."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class ModelConfig:
    """A model that has been looked at but not loaded.

    Attributes:
        keys: what the recipe said.
        folder: where its files are; None for a hub model that has not been fetched yet.
        raw: config.json.
        tensors: every tensor by name.
    """

    keys: ModelKeys
    folder: Path | None
    raw: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def model_type(self) -> str:
        """The family, as transformers calls it ("qwen3")."""
        return str(self.raw.get("model_type", ""))

    @property
    def layout(self) -> Layout:
        """What its modules are called."""
        return layout_of(self.raw)

    @property
    def blocks(self) -> int:
        """Number of decoder blocks."""
        return int(self.raw.get("num_hidden_layers") or 0)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.raw.get("hidden_size") or 0)

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return int(self.raw.get("vocab_size") or 0)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None when config.json does not say."""
        value = self.raw.get("max_position_embeddings")
        return int(value) if value else None

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding."""
        family = FAMILIES.get(self.model_type)
        return bool(self.raw.get("tie_word_embeddings", family is not None and family.tied))

    @property
    def ends(self) -> dict[str, tuple[int, int]]:
        """`(V, hidden)` of embedding and head, by full name; where they are tied, of the embedding alone."""
        names = [self.layout.embeddings, *([] if self.tied else [self.layout.head])]
        return {name: shape for name in names if (shape := self._shape(name))}

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """The `quantization_config` of a model that is quantized already."""
        return quantization_in(self.raw)

    @property
    def parameters(self) -> int:
        """Number of parameters; of packed layers their weights count."""
        if self.quantization:
            return parameters_of(self.tensors, self.linears | self.ends, self.quantization)
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Size of the stored tensors."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Quantizable linear layers by full name, with `(O, I)`, block by block in the order data passes them."""
        return {name: shape for name in self.layout.layer_names(self.blocks) if (shape := self._shape(name))}

    def _shape(self, name: str) -> tuple[int, int] | None:
        """`(O, I)` of a layer, packed or not; None where there is none."""
        packed = packed_shape(name, self.tensors, self.quantization) if self.quantization else None
        tensor = self.tensors.get(f"{name}.weight")
        plain = tensor.shape if tensor is not None else ()
        return packed or ((plain[0], plain[1]) if len(plain) == 2 else None)

    def identity(self) -> str:
        """Digest of the contents: small files whole, weights by header, size and 64 evenly spread samples of 4 KiB.

        Cheap enough for pre-flight; it tells checkpoints apart that were trained differently, not single flipped bits.
        """
        if self.folder is None:
            return hashlib.sha256(f"{self.keys.path}@{self.keys.revision}".encode()).hexdigest()
        digest = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if not path.is_file() or path.name.startswith(".") or path.suffix in (".md", ".bin", ".pt", ".png"):
                continue
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                if path.suffix != ".safetensors":
                    digest.update(file.read())
                    continue
                (header,) = struct.unpack("<Q", file.read(8))
                digest.update(file.read(header))
                for sample in range(64):
                    file.seek(8 + header + (size - 8 - header) * sample // 64)
                    digest.update(file.read(4096))
        return digest.hexdigest()

    def fetch(self, *, offline: bool) -> Path:
        """The folder with all files, fetched from the hub when they are not there yet.

        Raises:
            ModelError: files are missing and nothing may be fetched.
        """
        if self.folder is not None:
            return self.folder
        return fetch(self.keys, offline=offline)

    def vocabulary(self, *, offline: bool) -> dict[str, int] | None:
        """Ids by token, from the tokenizer's files, which are fetched if need be; None in formats not read here.

        Raises:
            ModelError: a file is missing or damaged, or an id has no row in the embedding.
        """
        files = (*TOKENIZERS, "tokenizer_config.json", "added_tokens.json")
        found = read_vocabulary(self.folder or fetch(self.keys, offline=offline, only=files))
        highest = max(found.values(), default=-1) if found else -1
        if found and self.vocab and highest >= self.vocab:
            raise past_the_embedding(self.keys.path, found, self.vocab)
        return found


def quantization_in(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a config.json, or what stands for it; None of a model that is not quantized.

    MLX writes `quantization`, and releases of mlx_lm the same once more as `quantization_config`, without a method.
    """
    value = raw.get("quantization_config") or raw.get("compression_config")
    own = raw.get("quantization")
    if isinstance(own, Mapping) and not (isinstance(value, Mapping) and "quant_method" in value):
        return {"quant_method": MLX, **own}
    return value if isinstance(value, Mapping) else None


def read_config(keys: ModelKeys, *, offline: bool = False) -> ModelConfig:
    """Looks at a model: config.json and tensor headers, from disk, or from the hub without fetching the weights.

    Raises:
        UnknownName: no such built-in model.
        ModelError: files are missing or damaged; with `offline`, anything of a hub model is missing.
    """
    folder = resolve(keys)
    if folder is None:
        raw, headers = read_remote(keys, offline=offline)
        check_numbers(f"config.json of '{keys.path}'", raw)
        return ModelConfig(keys, None, raw, {name: Tensor(*header) for name, header in headers.items()})
    config = folder / "config.json"
    if not config.is_file():
        steps = sorted(str(found.parent) for found in folder.glob("*/config.json"))
        if steps:
            raise ModelError(
                f"'{keys.path}' is a run, not a model.", hint=f"Name one of its models: {', '.join(steps)}."
            )
        adapter = " It holds a LoRA adapter." if (folder / "adapter_config.json").is_file() else ""
        if any(folder.glob("*.gguf")):
            adapter = " It holds a GGUF file, which llama.cpp loads."
        raise ModelError(
            f"'{keys.path}' is not a model: it has no config.json.{adapter}",
            hint="Name a folder in Hugging Face format; merge an adapter into its base model first.",
        )
    refuse_pointers(folder)
    if not offline:
        complete(keys.path, folder)
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a mapping")
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"'{config}' cannot be read: {error}.", hint="Fetch the model again.") from error
    check_numbers(str(config), raw)
    named = raw.get("transformers_weights")
    if named:  # transformers would read that file, and what is looked at here is another
        raise ModelError(
            f"'{config}': transformers_weights is {named!a:.100}; weights are read from {SINGLE}, or from the files "
            f"that {INDEX} names.",
            hint="Give the file that is meant one of these names, and remove the key.",
        )
    if raw.get("auto_map") and not keys.trust_remote_code and raw.get("model_type") not in FAMILIES:
        raise ModelError(
            f"'{keys.path}' needs modelling code that comes with the checkpoint, which is not run unasked.",
            hint="If you trust it, set model.trust_remote_code: true.",
        )
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors.update(read_header(path))
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"'{keys.path}' has no tokenizer: none of {', '.join(TOKENIZERS)} is there.",
            hint="Copy the tokenizer files of the model into the folder.",
        )
    return ModelConfig(keys, folder, with_settings(folder, raw), tensors)


def check_quantizable(config: ModelConfig) -> None:
    """Refuses models that this version cannot quantize.

    Raises:
        ModelError: it is quantized already, of another architecture, or not complete.
    """
    path = config.keys.path
    if config.folder is not None and (config.folder / QUANTIZED_FILE).is_file():
        raise ModelError(
            f"'{path}' is a finished step of a run.",
            hint=f"Begin with it: `start: {path}`, under `model` what that run started from, and no `quantize`.",
        )
    if config.quantization is not None:
        method = config.quantization.get("quant_method", "an unknown method")
        raise ModelError(
            f"'{path}' is quantized already ({method}).",
            hint="Name the checkpoint it was made from, in 16 or 32 bits; training may begin with this one: `start:`.",
        )
    experts = next((key for key in EXPERTS if config.raw.get(key)), None)
    if experts is not None and not config.layout.expert:
        raise ModelError(
            f"'{path}' is a mixture of experts ({experts}: {config.raw[experts]}) of the architecture "
            f"'{config.model_type}', which this version cannot quantize.",
            hint=f"Supported: {', '.join(FAMILIES)}.",
        )
    if config.model_type not in FAMILIES:
        text = config.raw.get("text_config")
        inner = text.get("model_type") if isinstance(text, Mapping) else None
        alone = f" Its part for text is {inner}: save that alone." if inner in FAMILIES else ""
        raise ModelError(
            f"'{path}' is of the architecture '{config.model_type}', which this version cannot quantize.",
            hint=f"Supported: {', '.join(FAMILIES)}.{alone}",
        )
    # transformers would take the family's own, which are another model's.
    if unsaid := [key for key in ("num_hidden_layers", "hidden_size", "vocab_size") if not config.raw.get(key)]:
        hint = "Mend config.json, or fetch the model again."
        raise ModelError(f"The config.json of '{path}' does not say {', '.join(unsaid)}.", hint=hint)
    layout = config.layout
    if mixes_blocks(config):
        raise ModelError(
            f"'{path}' has blocks with experts and blocks without (mlp_only_layers, decoder_sparse_step).",
            hint="This version quantizes models in which every block has experts, or none has.",
        )
    others = [layout.embeddings, layout.norm, *([] if config.tied else [layout.head])]
    expected = [f"{name}.weight" for name in (*layout.layer_names(config.blocks), *others)]
    missing = [name for name in expected if name not in config.tensors]
    if missing:
        raise ModelError(
            f"'{path}' lacks tensors that its config.json asks for: {few(missing)}.",
            hint="The checkpoint is incomplete or in another layout; save it with save_pretrained or fetch it again.",
        )


def mixes_blocks(config: ModelConfig) -> bool:
    """Whether some of a model's blocks have experts and others have none."""
    raw = config.raw
    return bool(config.layout.expert and (raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        ModelError: there are none, or one that the index names is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = shard_names(folder)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"'{folder}' lacks {', '.join(missing)}.", hint="Fetch the model again; it is incomplete.")
        return [folder / name for name in names]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ModelError(
            f"'{folder}' has its weights in pickle files, which can run code when read; only safetensors are loaded.",
            hint="If you trust them, convert once: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...).",
        )
    raise ModelError(
        f"'{folder}' has no weights: {SINGLE} is missing.", hint="Fetch the model again; it is incomplete."
    )


def check_numbers(place: str, raw: Mapping[str, Any]) -> None:
    """Refuses a config.json whose sizes are none, before anything is computed with them.

    Raises:
        ModelError: names the key and its value.
    """
    for key, most in SIZES.items():
        value = raw.get(key)
        if value is not None and (type(value) is not int or not 0 < value <= most):
            raise ModelError(
                f"'{place}': {key} is {value!r:.60}, not a whole number from 1 to {most:,}.",
                hint="Mend config.json, or fetch the model again.",
            )
    kinds: dict[str, tuple[type, str]] = {"model_type": (str, "text"), "architectures": (list, "a list")}
    for key, (kind, what) in kinds.items():
        if raw.get(key) is not None and not isinstance(raw[key], kind):
            raise ModelError(f"'{place}': {key} is {raw[key]!r:.60}, not {what}.", hint="Fetch the model again.")


def read_header(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of the tensors of a safetensors file: 8 bytes of header length, then JSON, then data.

    Raises:
        ModelError: the file is cut off or is no safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER + 1
        text = file.read(length) if length <= _LARGEST_HEADER else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: Tensor(tuple(map(int, entry["shape"])), str(entry["dtype"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"'{path}' is not a readable safetensors file.", hint="It is damaged or was cut off; fetch it again."
        ) from error
    size = path.stat().st_size
    if size != 8 + length + end:
        raise ModelError(
            f"'{path}' is damaged: {size:,} bytes instead of {8 + length + end:,}.",
            hint="The file was cut off; fetch it again.",
        )
    return tensors
