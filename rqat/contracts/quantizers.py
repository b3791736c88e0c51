"""Quantizers: codes without training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..scheme import Scheme
from . import returned
from .grids import QuantizedWeight
from .options import Options

if TYPE_CHECKING:
    import torch

Statistic = Literal["hessian", "absmean", "mean", "absmax", "cross", "streams", "saliency"]
"""What a quantizer may ask to be collected: per layer what `LinearStats` holds, per block `Block.streams`.

With "saliency" a token counts in second moments as much as the model's predictions depend on what the layers put out
there (`rqat.model.saliency`).
"""


@dataclass
class LinearStats:
    """What was seen at the input `x` of a linear layer over all calibration tokens. Layers with one input share it.

    Everything is None unless asked for by the quantizer's `needs`.

    Attributes:
        tokens: number of tokens `T` seen.
        hessian: `(I, I)` float32, second moments `1/T * sum_t x_t x_t^T`.
        absmean: `(I,)` float32, `1/T * sum_t |x_t|`.
        mean: `(I,)` float32, `1/T * sum_t x_t`.
        absmax: `(I,)` float32, `max_t |x_t|`.
        cross: `(I, I)` float32, `1/T * sum_t x_t (y_t - x_t)^T`, where `y` is the same input in the original model:
            asymmetric calibration (GPTAQ, arXiv 2504.02692).
    """

    tokens: int = 0
    hessian: torch.Tensor | None = None
    absmean: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    absmax: torch.Tensor | None = None
    cross: torch.Tensor | None = None


@dataclass(frozen=True)
class SharedInput:
    """Linear layers that read the same input, e.g. q, k and v.

    Attributes:
        names: the layers, named inside the block ("self_attn.q_proj").
        before: the module whose output is that input up to element-wise scaling (a norm, or a linear layer), so that
            `x / s` can be folded into it; None when there is none.
    """

    names: tuple[str, ...]
    before: str | None = None


@dataclass(frozen=True)
class Streams:
    """Hidden states of the calibration tokens around one block, in batches; there when `needs` asks for "streams".

    Attributes:
        inputs: what the block reads in the quantized model: all blocks before it are quantized. Each `(B, T, hidden)`.
        original_inputs: the same in the model before quantization.
        original_outputs: what the original block makes of `original_inputs`.
        masks: `(B, T)` bool, False at padding; None where there is none.
        run: calls the block, as it is now, on one batch or on some of its sequences: `run(number, hidden) -> hidden`;
            gradients flow.
    """

    inputs: Sequence[torch.Tensor]
    original_inputs: Sequence[torch.Tensor]
    original_outputs: Sequence[torch.Tensor]
    masks: Sequence[torch.Tensor | None]
    run: Callable[[int, torch.Tensor], torch.Tensor]


@dataclass
class Block:
    """One decoder layer, in memory, with everything before it already quantized; or one of the model's two ends.

    Attributes:
        name: where the block sits in the model ("model.layers.3"); "model" for a head that is tied to the embedding,
            empty for one that is not.
        module: the decoder layer; a quantizer may change modules named by `SharedInput.before` in place.
        inputs: the quantizable linear layers, grouped by shared input, in the order in which data passes them.
        schemes: the scheme of every layer, by its name inside the block.
        streams: hidden states around the block; None unless asked for.
    """

    name: str
    module: torch.nn.Module
    inputs: Sequence[SharedInput]
    schemes: Mapping[str, Scheme]
    streams: Streams | None = None

    def full_name(self, name: str) -> str:
        """The full name of the layer called `name` inside this block."""
        return f"{self.name}.{name}" if self.name else name

    def linear(self, name: str) -> torch.nn.Linear:
        """The linear layer called `name` inside this block."""
        return self.module.get_submodule(name)  # type: ignore[return-value]

    def names(self) -> list[str]:
        """Every quantizable linear layer of this block, named inside the block."""
        return [name for group in self.inputs for name in group.names]


class Quantizer(ABC):
    """Turns the weights of a model into codes, without training.

    A plugin implements `quantize_linear`; it overrides `quantize_block` only when layers depend on each other, as in
    AWQ, which folds scales into the module before.

    Class attributes:
        needs: statistics to collect at the input of every layer; exactly these are there when `quantize_linear` runs.
            An object's own also has what its options need beyond those (`Options.also_needs`).
        tied_ends: it also quantizes a weight that is the model's embedding and its head in one, by what the head reads
            in the model before quantization. Without it such a weight, as an embedding always, is rounded to the
            nearest values of its grid, fitted for the least squared error; and so is a head of its own where the
            quantizer needs streams, which there are none of behind the last block: with it, `Block.streams` is None.
        in_turn: it quantizes a decoder layer one shared input at a time, with statistics of what the layers before have
            become by then: `quantize_block` is called once for each, with a block of that input alone. Not where it
            needs "cross" or "streams".
    """

    needs: ClassVar[frozenset[Statistic]] = frozenset()
    tied_ends: ClassVar[bool] = False
    in_turn: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        returned.held_to(cls, {"quantize_block": returned.layers})

    def __init__(self, options: Any) -> None:
        self.options = options
        more: Any = options.also_needs() if isinstance(options, Options) else ()
        if more := frozenset(more):  # else a plugin's may be a property
            self.needs = type(self).needs | more  # type: ignore[misc]

    @property
    def layerwise(self) -> Quantizer:
        """What quantizes single layers in its place, where a budget's widths are measured: itself, unless its blocks
        start from another quantizer's result.
        """
        return self

    @abstractmethod
    def quantize_linear(self, weight: torch.Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
        """Quantizes one weight.

        Args:
            weight: `(O, I)` float32, finite; must not be changed. `scheme.divides(I)` holds.
            stats: what `needs` asked for.
            scheme: bits, group, symmetry and grid to hit; `rqat.grid_of(scheme)` is the grid itself.
        """

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        """Quantizes every linear layer of a block; keys of `stats` and of the result are names inside the block."""
        return {
            name: self.quantize_linear(block.linear(name).weight.detach().float(), stats[name], block.schemes[name])
            for name in block.names()
        }
