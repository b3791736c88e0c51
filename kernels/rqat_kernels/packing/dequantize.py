"""Planes to a dense matrix: `w_hat[o, k] = (q[o, k] - z[o, k // g]) * s[o, k // g]`, in float32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..op import op
from .planes import PackedWeight


def dequantize_reference(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The definition, in plain torch: `(O, I)` in `dtype`."""
    dense, scale, zero = weight.codes().float(), weight.scale, weight.zero
    if weight.in_features % weight.group == 0:
        dense.view(*scale.shape, weight.group).sub_(zero[..., None]).mul_(scale[..., None])
    else:
        groups = torch.arange(weight.in_features, device=weight.device) // weight.group
        dense.sub_(zero[:, groups]).mul_(scale[:, groups])
    return dense.to(dtype)


def dequantize_packed(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """The dense matrix of a packed weight: one kernel on CUDA, plain torch elsewhere; equal bit by bit.

    Args:
        dtype: bfloat16, float16 or float32.

    Returns:
        `(O, I)`.
    """
    return _dequantize_op(*arguments(weight), dtype)


def arguments(weight: PackedWeight) -> tuple[Tensor, Tensor | None, Tensor, int, int, int, int]:
    """A packed weight as arguments of an operator: words, extra, params, O, I, bits, group."""
    sizes = (weight.out_features, weight.in_features, weight.bits, weight.group)
    return weight.words, weight.extra, weight.params, *sizes


@op(
    "rqat::dequantize_packed",
    fake=lambda words, extra, params, out_features, in_features, bits, group, dtype: words.new_empty(
        (out_features, in_features), dtype=dtype
    ),
)
def _dequantize_op(
    words: Tensor, extra: Tensor | None, params: Tensor, out_features: int, in_features: int, bits: int, group: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    weight = PackedWeight(out_features, in_features, bits, group, words, extra, params)
    if use_triton(words):
        from .kernel import dequantize

        return dequantize(weight, dtype)
    return dequantize_reference(weight, dtype)
