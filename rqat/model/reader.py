"""A step of a run, read tensor by tensor: what exporters write from (`rqat.Reader`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..contracts import Context, Exporter, ModelShape, QuantizedWeight
from ..errors import PluginError
from ..scheme import Scheme
from ..storage import explained
from .checkpoint import DENSE_FILE, LayerFile, decoded
from .families import layout_of
from .hf_folder import ShardWriter, copy_tokenizer, save_tokenizer, widen_tokenizer, write_config
from .hub import QUANTIZED_FILE
from .layers import EMBEDDING, HEAD
from .tensor_file import Lying
from .tensors import damaged, open_tensors
from .tokenizers import tokenizer_in

if TYPE_CHECKING:
    import transformers

Read = TypeVar("Read")


class CheckpointReader:
    """A quantized model on disk; what it gives is in memory, and nothing else is.

    Args:
        unpacked: quantized layers that are handed out as tensors of 16 bits instead, where they are there.

    Attributes:
        folder: the step of a run.
        layers: the scheme of every other quantized layer, by full name, in the order data passes them.
        names: full names of all tensors that are not quantized weights, or are handed out as if they were not.
        unpacked: the scheme of those that are.
        progress: told how many different layers have been read, each time one is.

    Raises:
        ModelError: a file is missing or damaged, or was written by another version.
    """

    def __init__(self, folder: Path, *, unpacked: Collection[str] = ()) -> None:
        self.folder = folder
        self._layers = LayerFile(folder / QUANTIZED_FILE)
        self._dense, _ = open_tensors(folder / DENSE_FILE)
        schemes = self._layers.schemes
        self.layers: Mapping[str, Scheme] = {name: schemes[name] for name in schemes if name not in unpacked}
        self.unpacked: Mapping[str, Scheme] = {name: schemes[name] for name in schemes if name in unpacked}
        self.names: list[str] = [*(f"{name}.weight" for name in self.unpacked), *self._dense.tensors]
        self.progress: Callable[[int], None] = lambda done: None
        self._seen: set[str] = set()

    @cached_property
    def config(self) -> transformers.PretrainedConfig:
        """The model's configuration."""
        import transformers

        try:
            config: transformers.PretrainedConfig = transformers.AutoConfig.from_pretrained(
                self.folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise damaged(self.folder, " ".join(str(error).split())[:300]) from error
        return config

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return tokenizer_in(self.folder)

    @cached_property
    def skipped(self) -> list[str]:
        """Full names of the linear layers left as they were, lm_head among them, in the model's own order.

        Behind them what chooses experts: to servers a linear layer, which is quantized where nothing else is said.
        """
        import transformers

        model_class: Any = getattr(transformers, (self.config.architectures or [""])[0], None)
        if model_class is None:
            raise damaged(self.folder, f"config.json names {self.config.architectures}, unknown to transformers")
        with torch.device("meta"):
            model = model_class(self.config)
        linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        tied = EMBEDDING in self.layers and bool(self.config.get_text_config().tie_word_embeddings)
        layout = layout_of(self.config)
        routers = [f"{layout.block(index)}.{layout.router}" for index in range(self.config.num_hidden_layers)]
        kept = [name for name in linears if name not in self.layers and not (tied and name == HEAD)]
        return [*kept, *(name for name in routers if layout.router and name not in kept)]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """`(O, I)` of every quantized layer, unpacked ones included; none is read for it."""
        return self._layers.shapes

    @property
    def parameters(self) -> int:
        """Number of weights, quantized ones included."""
        shapes = [*self.shapes.values(), *(each.shape for each in self._dense.tensors.values())]
        return sum(map(math.prod, shapes))

    @property
    def context(self) -> Context:
        """What an exporter's options are checked against."""
        linears = {name: shape for name, shape in self.shapes.items() if name in self.layers}
        return Context(schemes=self.layers, model=seen_of(str(self.folder), self.config, linears))

    def tensor(self, name: str) -> Tensor:
        """One of `names`, on the CPU, in the narrowest dtype that holds its values; bfloat16 if it was unpacked."""
        if (layer := name.removesuffix(".weight")) in self.unpacked:
            return decoded(self._layers.layer(layer), torch.bfloat16)
        return self._dense.read(name)

    def lying(self, name: str) -> Tensor | Lying:
        """One of `names`, not read where it lies in a file as `tensor` gives it."""
        return self.tensor(name) if name.removesuffix(".weight") in self.unpacked else self._dense.tensors[name]

    def dtype(self, name: str) -> torch.dtype:
        """Of one of `names`, which is not read."""
        unpacked = name.removesuffix(".weight") in self.unpacked
        return torch.bfloat16 if unpacked else self._dense.tensors[name].dtype

    def layer(self, name: str) -> QuantizedWeight:
        """A quantized layer, on the CPU."""
        layer = self._layers.layer(name)
        self._seen.add(name)
        self.progress(len(self._seen))
        return layer

    def grid_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a quantized layer, without its codes."""
        return self._layers.part(name, "scale"), self._layers.part(name, "zero")

    def save(self, folder: Path, exporter: Exporter, layers: Mapping[str, Scheme]) -> None:
        """Writes a Hugging Face folder from what `exporter.tensors` and `exporter.config` give, shard by shard.

        Raises:
            PluginError: the exporter's configuration names no method, or two of its tensors have one name.
            RunError: the disk is full or the folder not writable.
        """
        config = exporter.config(layers, self.skipped)
        if config is not None and not config.get("quant_method"):
            raise PluginError(
                f"{type(exporter).__name__}.config() gives a quantization_config without a quant_method.",
                hint="Name the method that its readers look for; return None for weights that are not packed.",
            )
        with explained(folder):
            shards = ShardWriter(folder)
            plain = type(exporter).other is Exporter.other  # then nobody looks at these, which may be large
            for name in self.names:
                shards.add(name, self.lying(name) if plain else exporter.other(name, self.tensor(name)))
            for name, layer in one_ahead((name, self.layer(name)) for name in layers):
                for key, tensor in exporter.tensors(name, layer).items():
                    shards.add(key, tensor)
            shards.close()
            write_config(self.folder, folder, config)
            if not copy_tokenizer(self.folder, folder):
                save_tokenizer(self.tokenizer, folder)
            widen_tokenizer(folder)


def one_ahead(reading: Iterator[Read]) -> Iterator[Read]:
    """What an iterator reads from files, the next one in a second thread while whoever asks works with this one."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, reading, end)
        while (found := following.result()) is not end:
            following = thread.submit(next, reading, end)
            yield found


def seen_of(name: str, config: transformers.PretrainedConfig, linears: Mapping[str, tuple[int, int]]) -> ModelShape:
    """What an exporter's options see of a model, by the config that transformers has of it."""
    text = config.get_text_config()
    return ModelShape(
        name=name,
        model_type=config.model_type,
        linears=linears,
        hidden=text.hidden_size,
        vocab=text.vocab_size,
        blocks=text.num_hidden_layers,
        tied=bool(text.tie_word_embeddings),
        context=getattr(text, "max_position_embeddings", None),
        config=config.to_dict(),
    )
