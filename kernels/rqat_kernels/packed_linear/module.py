"""A layer that holds a packed weight in the place of `nn.Linear`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..decode import silu_mul
from ..packing import PackedWeight, dequantize_packed
from .on_cpu import FewRows


class PackedLinear(nn.Module):
    """`y = x w_hat^T + bias` on a `PackedWeight`, for inference; the weight is no parameter.

    Arrays are integer buffers, so that casting a model to another type leaves them alone. On CUDA the layer is
    `packed_linear`, which CUDA graphs can capture. On the CPU, copies of the weight are made when they are first needed
    and kept: one in 2 or 4 bits for few rows (`on_cpu.py`), and a dense one per type of `x` for more.

    Attributes:
        out_features, in_features, bits, group: of the weight.
        weight: the `PackedWeight`.
        bias: `(O,)` buffer, or None.
    """

    words: Tensor
    extra: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.bits, self.group = weight.bits, weight.group
        self._params_type = weight.params.dtype
        self.register_buffer("words", weight.words)
        self.register_buffer("extra", weight.extra)
        self.register_buffer("params", weight.params.view(_integer(weight.params.dtype)))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._dense: dict[torch.dtype, Tensor] = {}
        self._few: FewRows | None = None

    @classmethod
    def from_codes(
        cls, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, bias: Tensor | None = None,
        group: int | None = None,
    ) -> PackedLinear:  # fmt: skip
        """Packs codes; see `PackedWeight.from_codes`."""
        return cls(PackedWeight.from_codes(codes, scale, zero, bits, group), bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale: Tensor, zero: Tensor, bits: int) -> PackedLinear:
        """Packs a layer whose weight is on the grid of `scale` and `zero`, both `(O, G)`, or is to be rounded to it."""
        from ..grid import quantize

        codes = quantize(linear.weight.detach(), scale, zero, 2**bits - 1)
        return cls.from_codes(codes, scale, zero, bits, linear.bias)

    @property
    def weight(self) -> PackedWeight:
        params = self.get_buffer("params").view(self._params_type)
        sizes = (self.out_features, self.in_features, self.bits, self.group)
        return PackedWeight(*sizes, self.words, self.extra, params)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., O)` of `x (..., I)`."""
        if x.device.type != "cpu":
            from . import packed_linear

            return packed_linear(x, self.weight, self.bias)
        if self._few is None:
            self._few = FewRows(self.weight)
        found = self._few(x, lambda: self.weight)
        if found is not None:
            return (found if self.bias is None else found + self.bias).to(x.dtype)
        dense = self._dense.get(x.dtype)
        if dense is None:
            dense = self._dense[x.dtype] = dequantize_packed(self.weight, x.dtype)
        return nn.functional.linear(x, dense, self.bias)

    def swiglu(self, x: Tensor) -> Tensor:
        """`(..., O / 2)` of `x (..., I)`: half of the outputs, through SiLU, times the others; for inference."""
        if x.device.type != "cpu":
            from . import packed_swiglu

            return packed_swiglu(x, self.weight, self.bias)
        return silu_mul(self(x))

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, bits={self.bits}, group={self.group}"

    def _apply(self, fn, recurse: bool = True):
        # What was derived from the arrays is on the device they leave.
        self._dense, self._few = {}, None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._dense, self._few = {}, None
        return super()._load_from_state_dict(*args, **kwargs)


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.float32 else torch.int16
