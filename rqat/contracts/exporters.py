"""Files that servers load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..scheme import Scheme
from . import returned
from .grids import QuantizedWeight

if TYPE_CHECKING:
    import torch
    import transformers


class Reader(Protocol):
    """A quantized model on disk, tensor by tensor."""

    @property
    def config(self) -> transformers.PretrainedConfig:
        """The model's configuration, without any `quantization_config`."""

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The model's tokenizer."""

    @property
    def layers(self) -> Mapping[str, Scheme]:
        """The scheme of every quantized layer, by full name, in the order data passes them."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """`(O, I)` of every quantized layer, by full name; none is read for it."""

    @property
    def names(self) -> Sequence[str]:
        """Full names of all tensors that are not quantized weights, biases of quantized layers included.

        A quantized embedding is one of them, in bfloat16, where the exporter's card does not say `embedding=True`.
        """

    def tensor(self, name: str) -> torch.Tensor:
        """One of `names`, on the CPU, in the narrowest dtype that holds its values."""

    def layer(self, name: str) -> QuantizedWeight:
        """A quantized layer, on the CPU."""

    def save(self, folder: Path, exporter: Exporter, layers: Mapping[str, Scheme]) -> None:
        """Writes a Hugging Face folder from what `exporter.tensors` and `exporter.config` give, shard by shard."""


class Exporter:
    """Writes a quantized model in one checkpoint format.

    A format of safetensors and a `quantization_config` implements `tensors` and `config`; the default of `write` does
    the rest. A format of its own (a single file, say) overrides `write`.

    Class attributes:
        loader_packages: what must be installed, beside transformers, to load the checkpoint with `from_pretrained`;
            where it is, the export stage does so and compares logits. None: transformers cannot load it.
        loader_tolerance: largest difference allowed then, as a share of the largest logit, in float32 on the CPU.
        loader_dtype: name of the torch dtype that decoded weights are stored in, for a format without codes; they are
            compared with weights rounded to it. Empty: the file holds codes.
        rounds_anew: of a format that rounds weights once more: the largest part of a layer, as a share of its norm, by
            which `values` may differ from it. 0: by an eighth of a step of the grid at most.
        serving: Markdown for the README.md beside the checkpoint: how to serve it, and what servers do not support.

    The last two may depend on options: then `__init__` sets them.
    """

    loader_packages: ClassVar[tuple[str, ...] | None] = None
    loader_tolerance: ClassVar[float] = 0.0
    loader_dtype: ClassVar[str] = ""
    rounds_anew: float = 0.0
    serving: str = ""

    def __init__(self, options: Any) -> None:
        self.options = options

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        checks = {"tensors": returned.tensors, "other": returned.tensor, "decode": returned.decoded}
        returned.held_to(cls, {**checks, "config": returned.settings})

    def write(self, folder: Path, reader: Reader, layers: Mapping[str, Scheme]) -> None:
        """Writes the whole model into an existing, empty folder; the host adds README.md and checks what is there.

        Args:
            layers: the scheme of every quantized layer, by full name, in the order data passes them.
        """
        reader.save(folder, self, layers)

    def tensors(self, name: str, weight: QuantizedWeight) -> dict[str, torch.Tensor]:
        """Tensors of one layer under their full names (`name + ".weight_packed"`); `weight.scheme` is set."""
        raise NotImplementedError

    def other(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that is no quantized weight, as this format holds it; by default as it is.

        Args:
            tensor: on the CPU, in the narrowest dtype that holds its values.
        """
        return tensor

    def config(self, layers: Mapping[str, Scheme], skipped: Sequence[str]) -> dict[str, Any] | None:
        """The `quantization_config` of the checkpoint's config.json; None writes none.

        Args:
            layers: the scheme of every quantized layer, by full name.
            skipped: full names of the linear layers left as they were, lm_head among them.
        """
        raise NotImplementedError

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The inverse of `tensors`; optional. With it, the export stage checks every layer bit by bit."""
        raise NotImplementedError

    def values(self, folder: Path, reader: Reader) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and weights `(O, I)` of the quantized layers, float32, as readers of the files compute them; optional.

        For formats that have no `decode`, or hold a little less than codes, scales and zero points: the export stage
        says by how much of a step of the grid a weight differs at most, and refuses more than an eighth, or what
        `rounds_anew` says.

        Args:
            reader: of what was written, for names and shapes.
        """
        raise NotImplementedError
