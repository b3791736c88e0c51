"""A quantized model put together of finished blocks, tensor by tensor: a checkpoint as `save_checkpoint` writes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..storage import sweep
from .block_store import FinishedLayers
from .checkpoint import DENSE_FILE, write_dense, write_layers
from .hub import QUANTIZED_FILE
from .streaming import Streamed
from .tensor_file import Lying, TensorFile
from .tensors import narrowest, save_tensors
from .transforms import Applied

if TYPE_CHECKING:
    import transformers


def write_finished(
    folder: Path,
    weights: Streamed,
    tokenizer: transformers.PreTrainedTokenizerBase,
    layers: FinishedLayers,
    scratch: Path,
    transforms: Sequence[Applied] = (),
    *,
    written: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a checkpoint into an existing folder; whoever calls gives the folder its final name.

    Args:
        layers: of all blocks, kept in files.
        scratch: an existing folder for what is in no block, until it is written.
        transforms: what the model went through before.
        written: told of each file of tensors once it is there.
    """
    model, dense, rest = weights.model, dict[str, Tensor | Lying](), scratch / "rest"
    shutil.rmtree(rest, ignore_errors=True)
    rest.mkdir()
    own = dict(model.named_parameters())
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - own.keys()
    quantized = {f"{name}.weight" for name in layers}
    buffers = dict(model.named_buffers())
    for name in model.state_dict():
        if name in quantized or name in tied:
            continue
        if name in layers.others:
            dense[name] = layers.others[name]
            continue
        found = weights.unchanged(name) if name in own else buffers[name].cpu()
        if isinstance(found, Tensor):
            path = rest / f"{name}.safetensors"
            save_tensors(path, {name: narrowest(found)}, {})
            found = TensorFile(path).tensors[name]
        dense[name] = found
    sweep(folder)  # of a file whose writing was interrupted
    with ThreadPoolExecutor(1) as thread:  # the system copies both files
        path = folder / QUANTIZED_FILE
        copying = thread.submit(write_layers, path, layers.tensors(), layers.schemes(), layers.notes())
        write_dense(folder, model, tokenizer, dense, transforms)
        copying.result()
    written(folder / QUANTIZED_FILE)
    written(folder / DENSE_FILE)
    shutil.rmtree(rest)
