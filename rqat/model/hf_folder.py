"""A Hugging Face folder, written tensor by tensor: numbered shards and their index, config.json, tokenizer files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import PluginError
from ..storage import read_json, write_json
from .hub import GENERATION_FILE, INDEX, SINGLE
from .tensor_file import Lying, TensorFile
from .tensors import owned, save_tensors
from .tokenizers import FILES

if TYPE_CHECKING:
    import transformers

SHARD = 5 * 10**9
"""Bytes of tensors in one file, at most."""

HELD = 1 << 28
"""Bytes of tensors that wait in memory; more wait in files, until their shard is full and is put together of them."""

TEMPLATES = "additional_chat_templates"
"""Folder of chat templates beside the usual one."""

HOW_LOADED = ("is_local", "local_files_only")
"""Settings of `from_pretrained` that transformers would write into tokenizer_config.json."""


class ShardWriter:
    """Takes tensors one after the other and writes them into `model.safetensors`, or into numbered shards.

    Every shard is written as soon as it is full, under a name of its own until their number is known.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._elsewhere: dict[str, Lying] = {}
        self._parts: list[TensorFile] = []
        self._shard: list[str] = []
        self._size = 0
        self._written: list[list[str]] = []
        self._names: set[str] = set()
        self._total = 0

    def add(self, name: str, tensor: Tensor | Lying) -> None:
        """Takes over one tensor; one that lies in another file is copied from there, which is left as it is.

        Raises:
            PluginError: there was one of that name before.
            RunError: the disk is full or the folder not writable.
        """
        if name in self._names:
            raise PluginError(
                f"the tensor '{name}' is written twice.",
                hint="An exporter's tensors are named after their layer; please report it to the plugin's author.",
            )
        if self._size and self._size + tensor.nbytes > SHARD:
            self._flush()
        self._names.add(name)
        self._shard.append(name)
        self._size += tensor.nbytes
        if isinstance(tensor, Lying):
            self._elsewhere[name] = tensor
            return
        if self._held and self._held_bytes + tensor.nbytes > HELD:
            self._put_down()
        self._held[name] = owned(tensor.detach().cpu())
        self._held_bytes += tensor.nbytes

    def close(self) -> None:
        """Writes what is left and gives the files their names.

        Raises:
            RunError: the disk is full or the folder not writable.
        """
        self._flush()
        count = len(self._written)
        if count == 1:
            self._unnamed(0).replace(self._folder / SINGLE)
            return
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, file in enumerate(files):
            self._unnamed(number).replace(self._folder / file)
        holder = {name: file for file, names in zip(files, self._written, strict=True) for name in names}
        write_json(self._folder / INDEX, {"metadata": {"total_size": self._total}, "weight_map": holder})

    def _put_down(self) -> None:
        """Writes what waits in memory into a file of its own."""
        path = self._folder / f".part-{len(self._parts):05d}"
        save_tensors(path, self._held, {})
        self._parts.append(TensorFile(path))
        self._held, self._held_bytes = {}, 0

    def _flush(self) -> None:
        parts = {name: lying for part in self._parts for name, lying in part.tensors.items()}
        save_tensors(self._unnamed(len(self._written)), {**self._held, **self._elsewhere, **parts}, {"format": "pt"})
        for path in {one.path for one in parts.values()}:
            path.unlink()
        self._written.append(self._shard)
        self._total += self._size
        self._held, self._elsewhere, self._parts, self._shard = {}, {}, [], []
        self._held_bytes = self._size = 0

    def _unnamed(self, number: int) -> Path:
        return self._folder / f".shard-{number:05d}"


def write_config(start: Path, folder: Path, quantization: dict[str, Any] | None) -> None:
    """Writes config.json and copies generation_config.json.

    The rotary embedding's parameters are written twice: transformers 4 and mlx_lm know only the older spelling and
    would silently take their own defaults for what they do not find.

    Args:
        quantization: the `quantization_config`; None writes none.
    """
    config = read_json(start / "config.json")
    config |= _older_spelling(config)
    if quantization is not None:
        config["quantization_config"] = quantization
    write_json(folder / "config.json", config)
    if (start / GENERATION_FILE).exists():
        shutil.copy(start / GENERATION_FILE, folder)


def _older_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """What older readers call the parameters of rotary embeddings, one set or one for each type of attention."""
    given = config.get("rope_parameters") or {}
    rope, found = given.get("full_attention") or given, dict[str, Any]()
    if "rope_theta" not in rope:
        return found
    found["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        found["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in rope.items() if key not in {"rope_theta", *found}}
        if config.get("model_type") == "phi3":  # of which transformers 4 takes these three keys and no other
            found["rope_scaling"] = {key: rope[key] for key in ("short_factor", "long_factor") if key in rope}
            found["rope_scaling"]["type"] = rope["rope_type"]
    if sliding := given.get("sliding_attention"):
        found["rope_local_base_freq"] = sliding["rope_theta"]
    return found


def save_tokenizer(tokenizer: transformers.PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a tokenizer as it is, without what transformers has noted in it about how it was opened."""
    for key in HOW_LOADED:
        getattr(tokenizer, "init_kwargs", {}).pop(key, None)
    tokenizer.save_pretrained(folder)


def copy_tokenizer(start: Path, folder: Path) -> bool:
    """Copies the tokenizer that `save_tokenizer` has saved in a step, as it lies there; whether it is of plain files.

    Reading and saving it again would take seconds for a vocabulary of 150,000 tokens, and end in the same files.
    """
    if not (start / "tokenizer.json").is_file() or any(start.glob("*.py")) or (start / TEMPLATES).exists():
        return False
    for path in start.iterdir():
        if path.is_file() and FILES.match(path.name):
            shutil.copyfile(path, folder / path.name)
    return True


def widen_tokenizer(folder: Path) -> None:
    """Gives a saved tokenizer the names that transformers 4 knows too; transformers 5 reads both."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(path, settings)
