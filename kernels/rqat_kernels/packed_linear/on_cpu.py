"""Few rows on the CPU, by operations that torch brings along: the packed weight is read, not a dense one.

`Bags`, exact in float32, for 2 and 4 bits: torch's sums of quantized embeddings (FBGEMM). A row of codes of all outputs
is an "embedding", a group of input features a "bag", and x the weights in it:

    p[g, o] = sum_{k in g} x_k q[o, k] - z[o, g] sum_{k in g} x_k        the zero points are one row more of each bag
    y[o]    = sum_g s[o, g] p[g, o]

`Int4`, for bfloat16: `aten::_weight_int4pack_mm_for_cpu`, which reads `w_hat = (q' - 8) s` with `q' = q - z + 8`. It is
exact where q' has 4 bits: at 2 and 3 bits, and at 4 if zero points are 8. It takes float32, too, but has fast code for
bfloat16 alone (4864 x 896, one core of a Xeon with AVX-512: 0.3 against 16 ms), whose output it rounds.

What neither reads in its own width is widened to 4 bits, once; torch 2.13 has nothing for 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..packing import PackedWeight

BAG_ROWS = 2
"""Rows up to which sums of embeddings beat a product with a dense matrix: every row reads all codes again."""

INT4_ROWS = 4
INT4_GROUPS = (256, 128, 64, 32)
"""Input features with one scale that the int4 product takes."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FewRows:
    """Products of few rows with a packed weight; what they read is made when it is first needed.

    Args:
        weight: on the CPU; it is not kept.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self._width = max(1, weight.in_features)
        self._in_bags, self._in_int4 = Bags.takes(weight), Int4.takes(weight)
        self._bags: Bags | None = None
        self._int4: Int4 | None = None

    def __call__(self, x: Tensor, weight: Callable[[], PackedWeight]) -> Tensor | None:
        """`(..., O)` of `x (..., I)`; None where a dense matrix does better, or there has to be a gradient."""
        rows = x.numel() // self._width
        if x.requires_grad or x.dtype not in DTYPES or not 0 < rows <= INT4_ROWS:
            return None
        if x.dtype == torch.bfloat16 and self._in_int4:
            self._int4 = self._int4 or Int4(weight())
            y = self._int4(x.reshape(rows, -1))
        elif rows <= BAG_ROWS and self._in_bags:
            self._bags = self._bags or Bags(weight())
            y = self._bags(x.reshape(rows, -1).float())
        else:
            return None
        return y.view(*x.shape[:-1], -1)


class Bags:
    """A packed weight as quantized embeddings; see the module."""

    def __init__(self, weight: PackedWeight) -> None:
        out, width, bits = weight.out_features, weight.in_features, 2 if weight.bits == 2 else 4
        self._groups = width // weight.group
        zero = weight.zero.T
        least = zero.amin()  # the zero points of some formats go from 1 to 2**bits
        codes = torch.empty(self._groups, weight.group + 1, out, dtype=torch.uint8)
        codes[:, :-1] = weight.codes().T.reshape(self._groups, -1, out)
        codes[:, -1] = zero - least
        # In front of what a row decodes to, its scale, and behind it what is added; both float16, at its end.
        ends = torch.tensor([1.0, 0.0], dtype=torch.float16).repeat(*codes.shape[:2], 1)
        ends[:, -1, 1] = least
        rows = [_bytes_of(codes.view(-1, out), bits), ends.view(-1, 2).view(torch.uint8)]
        self._embeddings = torch.cat(rows, dim=1)
        self._scale = weight.scale.T.contiguous()
        self._sum = (
            torch.ops.quantized.embedding_bag_2bit_rowwise_offsets
            if bits == 2
            else (torch.ops.quantized.embedding_bag_4bit_rowwise_offsets)
        )
        self._places: dict[int, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def takes(weight: PackedWeight) -> bool:
        """Whether a weight can be written so."""
        if not weight.in_features or weight.in_features % weight.group or weight.out_features % 4:
            return False
        zero = weight.zero
        return bool((zero == zero.round()).all() and zero.amin() >= 0 and zero.amax() - zero.amin() < 2**weight.bits)

    def __call__(self, x: Tensor) -> Tensor:
        """`(B, O)` of `x (B, I)`, both float32."""
        grouped = x.view(len(x), self._groups, -1)
        weights = torch.cat((grouped, -grouped.sum(-1, keepdim=True)), dim=-1).view(-1)
        if len(x) not in self._places:
            bag = len(weights) // (len(x) * self._groups)
            places = torch.arange(len(self._embeddings), dtype=torch.int32).repeat(len(x))
            self._places[len(x)] = (places, torch.arange(0, len(weights) + 1, bag, dtype=torch.int32))
        found = self._sum(self._embeddings, *self._places[len(x)], False, 0, False, weights, None, True)
        return found.view(len(x), self._groups, -1).mul_(self._scale).sum(1)


class Int4:
    """A packed weight as torch's int4 product reads it; see the module."""

    def __init__(self, weight: PackedWeight) -> None:
        self._group = next(size for size in INT4_GROUPS if weight.group % size == 0)
        scale = weight.scale
        grouped = weight.codes().view(*scale.shape, -1).int() + (8 - weight.zero.int())[..., None]
        self._words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(grouped.view(weight.out_features, -1), 1)
        params = torch.stack((scale.T, torch.zeros_like(scale.T)), -1).to(torch.bfloat16)
        self._params = params.repeat_interleave(weight.group // self._group, 0).contiguous()

    @staticmethod
    def takes(weight: PackedWeight) -> bool:
        """Whether the product takes a weight as it is."""
        whole = weight.in_features and weight.in_features % weight.group == 0 and weight.out_features % 16 == 0
        if not whole or all(weight.group % size for size in INT4_GROUPS):
            return False
        zero, scale = weight.zero, weight.scale
        held = torch.equal(zero, zero.round()) and torch.equal(scale, scale.bfloat16().float())
        return held and 2**weight.bits - 8 <= int(zero.amin()) and int(zero.amax()) <= 8

    def __call__(self, x: Tensor) -> Tensor:
        """`(B, O)` of `x (B, I)`, both bfloat16."""
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self._words, self._group, self._params
        )
        return found


def _bytes_of(codes: Tensor, bits: int) -> Tensor:
    """Codes `(R, N)` side by side in bytes `(R, N * bits / 8)`, the first in the lowest bits."""
    each = 8 // bits
    found = codes[:, ::each].clone()
    for place in range(1, each):
        found |= codes[:, place::each] << (bits * place)
    return found
