"""GPTQ's column loop. `reference.py` is the definition; callers get `blocked.py`, or `kernel.py` on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..op import op
from . import blocked
from .reference import Refit, gptq_loop

__all__ = ["Refit", "gptq_block", "gptq_loop"]


def gptq_block(
    weight: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    max_code: int,
    group_of: Tensor,
    *,
    refit: Refit | None = None,
    columns: int = 128,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `reference.gptq_loop`, in float32; `columns` is the width of a block, and groups have equal sizes."""
    if refit is None:
        codes = _static(weight, factor, scale, zero, max_code, group_of, columns)
        dense = torch.contiguous_format
        return codes, scale.float().clone(memory_format=dense), zero.float().clone(memory_format=dense)
    return _solver(weight, factor)(weight, factor, scale, zero, max_code, group_of, refit=refit, columns=columns)


@op(
    "rqat::gptq_block",
    fake=lambda weight, *_: torch.empty(weight.shape, dtype=torch.uint8, device=weight.device),
)
def _static(
    weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, max_code: int, group_of: Tensor, columns: int
) -> Tensor:
    """Codes `(O, I)` for grids that are there before the loop begins."""
    return _solver(weight, factor)(weight, factor, scale, zero, max_code, group_of, columns=columns)[0]


def _solver(weight: Tensor, factor: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if use_triton(weight, factor):
        from . import kernel

        return kernel.gptq_block
    return blocked.gptq_block
