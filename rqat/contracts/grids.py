"""How a weight becomes a code and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import PluginError
from ..scheme import Scheme

if TYPE_CHECKING:
    import torch

PARTS = ("codes", "scale", "zero")
"""Names under which the tensors of a quantized layer are stored."""


@dataclass(frozen=True)
class QuantizedWeight:
    """One quantized linear layer.

    Attributes:
        codes: `(O, I)` uint8, 0 to `2**bits - 1`.
        scale: `(O, G)` float32, positive, representable in both bfloat16 and float16 (`rqat_kernels.grid.snap_scale`).
        zero: `(O, G)`: uint8 on the range of the codes where the grid's zero points are whole, else float32.
        note: what the report should say about this layer, e.g. why it fell back to rounding. Empty when all went well.
        scheme: bits, group, symmetry and grid; a quantizer may leave it out, the host knows what it asked for.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    note: str = ""
    scheme: Scheme | None = None

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors by the names they are stored under; not copies."""
        return {part: getattr(self, part) for part in PARTS}

    @classmethod
    def from_state(
        cls, state: Mapping[str, torch.Tensor], scheme: Scheme | None = None, note: str = ""
    ) -> QuantizedWeight:
        """The inverse of `state`.

        Raises:
            KeyError: a part is missing.
        """
        return cls(state["codes"], state["scale"], state["zero"], note, scheme)

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same on another device."""
        return self._mapped(lambda tensor: tensor.to(device))

    def contiguous(self) -> QuantizedWeight:
        """The same with tensors of their own, detached and on the CPU: what files are written from."""
        return self._mapped(lambda tensor: tensor.detach().cpu().contiguous())

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> QuantizedWeight:
        return self.from_state(
            {part: function(tensor) for part, tensor in self.state().items()}, self.scheme, self.note
        )

    def equals(self, other: QuantizedWeight) -> bool:
        """Whether every part is equal to the bit, and so is the scheme."""
        mine, theirs = self.to("cpu").state(), other.to("cpu").state()
        return self.scheme == other.scheme and all(mine[part].equal(theirs[part]) for part in PARTS)


class Grid(ABC):
    """The values that codes stand for, and how weights get there.

    All methods but those of whole layers work on rows of groups: `R` rows of `g` weights each with one scale and one
    zero point `(R, 1)`; layers of any shape can be seen that way. Arithmetic is float32 (float64 for float64 weights).
    A grid implements `fit`, `quantize`, `decode` and `gradients`.

    Class attributes:
        whole_zeros: zero points are whole numbers on the range of the codes, stored in uint8; else real, in float32.
        uniform: codes, scales and zero points mean `(codes - zero) * scale` with whole zero points and rounding to the
            nearest: fused kernels, packed layers and checkpoint formats of servers apply. Without it the grid runs on
            the reference path.
    """

    whole_zeros: ClassVar[bool] = True
    uniform: ClassVar[bool] = False

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    @abstractmethod
    def fit(self, weight: torch.Tensor, importance: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point `(R, 1)`, snapped, that lose the least of `weight (R, g)`.

        Args:
            importance: `(R, g)` or broadcastable: what a squared error costs; None is 1.
        """

    @abstractmethod
    def quantize(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Codes `(R, g)` uint8 of the nearest points."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """`w_hat (R, g)`, computed in float32 (float64 for float64 scales)."""

    @abstractmethod
    def gradients(
        self, grad: torch.Tensor, latent: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Straight-through gradients of latent `(R, g)`, scale `(R, 1)` and zero point `(R, 1)`, linear in `grad`.

        Args:
            grad: `(R, g)`, the gradient on `w_hat`.
        """

    def code_gradients(
        self, grad: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of scale and zero point `(R, 1)` where the codes `(R, g)` stay as they are.

        The default is that of `w_hat = (f(codes) - zero) * scale`; grids whose zero points mean something else say it.

        Args:
            grad: `(R, g)`, the gradient on `w_hat`.
        """
        along = (grad * self.decode(codes, scale, zero)).sum(1, keepdim=True) / scale
        return along, -scale * grad.sum(1, keepdim=True)

    def requantize(self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The grid's values `(R, g)` nearest to `weight`: `decode` of `quantize`."""
        return self.decode(self.quantize(weight, scale, zero), scale, zero)

    @property
    def fixed_zero(self) -> bool:
        """Whether every group has the same zero point, which is then neither trained nor counted as stored."""
        return self.scheme.symmetric

    def snap(self, scale: torch.Tensor) -> torch.Tensor:
        """The nearest scale that can be stored; the default holds in bfloat16 and float16."""
        from rqat_kernels.grid import snap_scale

        return snap_scale(scale)

    def snap_zero(self, zero: torch.Tensor) -> torch.Tensor:
        """The nearest zero point that can be stored; the default rounds where zero points are whole."""
        return zero.round() if self.whole_zeros else zero

    def fit_layer(
        self, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`fit` for a whole layer `weight (O, I)`: scale and zero point `(O, G)`, float32.

        Args:
            importance: `(O, I)`, or `(I,)`: what a squared error costs; None is 1.
        """
        if importance is not None:
            importance = self._rows(importance.expand_as(weight))
        scale, zero = self.fit(self._rows(weight), importance)
        return scale.view(len(weight), -1), zero.view(len(weight), -1)

    def quantize_layer(
        self, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, note: str = ""
    ) -> QuantizedWeight:
        """`quantize` for a whole layer `weight (O, I)` with scale and zero point `(O, G)`."""
        codes = self.quantize(self._rows(weight), scale.reshape(-1, 1), zero.reshape(-1, 1))
        return self.layer(codes.view(weight.shape), scale, zero, note)

    def layer(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, note: str = "") -> QuantizedWeight:
        """A layer with its tensors in the dtypes in which this grid stores them.

        Raises:
            PluginError: the grid's zero points are whole numbers, and these are not.
        """
        kept = zero.byte() if self.whole_zeros else zero.float()
        if not kept.to(zero.dtype).equal(zero):
            one = zero[kept.to(zero.dtype) != zero][0].item()
            raise PluginError(
                f"a zero point of {one:g} on the grid '{self.scheme.grid}', which keeps them as whole numbers.",
                hint="Round them (`grid.snap_zero`), or use a grid that says `whole_zeros = False`.",
            )
        return QuantizedWeight(codes, scale.float(), kept, note, self.scheme)

    def decode_layer(self, layer: QuantizedWeight) -> torch.Tensor:
        """`w_hat (O, I)` of a whole layer, float32, on its device."""
        scale, zero = layer.scale.reshape(-1, 1), layer.zero.reshape(-1, 1)
        return self.decode(self._rows(layer.codes), scale, zero).view(layer.codes.shape)

    def _rows(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(-1, self.scheme.group_size(weight.shape[1]))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.scheme == getattr(other, "scheme", None)

    def __hash__(self) -> int:
        return hash((type(self), self.scheme))
