"""Few rows of bfloat16 on the CPU: codes of up to 4 bits in the layout of torch's own int4 product.

`aten::_weight_int4pack_mm_for_cpu` reads `w_hat = (q' - 8) s + z'`. With `q' = q - z + 8` and `z' = 0` it is exact;
every weight of 2 and 3 bits, and symmetric ones of 4, leave q' in 4 bits. For others `q' = q`, and `z' = (8 - z) s` is
rounded to bfloat16: the output is off by up to 6e-3 of its norm. The product beats the dense one up to about four rows
(4096 x 1024, one core: 0.21 instead of 0.31 ms at 1 row, even at 4 rows), and only in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..packing import PackedWeight

MOST_ROWS = 4
GROUPS = (32, 64, 128, 256)


def takes_int4(x: Tensor, rows: int, out_features: int, in_features: int, group: int) -> bool:
    """Whether torch's int4 product takes these sizes and pays."""
    fits = group in GROUPS and in_features % group == 0 and out_features % 16 == 0
    return fits and x.dtype == torch.bfloat16 and 0 < rows <= MOST_ROWS and not x.requires_grad


class Int4Weight:
    """A packed weight repacked for torch's int4 product on the CPU."""

    def __init__(self, weight: PackedWeight) -> None:
        self.group = weight.group
        codes, scale, offset = weight.codes().to(torch.int32), weight.scale, 8 - weight.zero
        shifted = codes + offset.repeat_interleave(self.group, 1)
        if torch.equal(shifted, shifted.round().clamp(0, 15)):
            codes, offset = shifted.to(torch.int32), torch.zeros_like(offset)
        self.words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.params = torch.stack((scale.T, (offset * scale).T), -1).to(torch.bfloat16).contiguous()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`(..., O)` of bfloat16 `x (..., I)`."""
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.words, self.group, self.params)
        y = y.view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
