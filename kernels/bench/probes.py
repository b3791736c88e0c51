"""Two Triton kernels that measure the device: one reads a stream of memory, one does nothing."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192


@triton.jit
def _read_kernel(source, sums, count, steps, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        offset = (step * tl.num_programs(0) + program) * BLOCK + lane
        total += tl.load(source + offset, mask=offset < count, other=0.0)
    tl.store(sums + program, tl.sum(total))


@triton.jit
def _empty_kernel(spot, EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def read_stream(source: Tensor) -> Tensor:
    """Reads `source` (float32, contiguous) once; one sum per program comes back."""
    programs = 8 * torch.cuda.get_device_properties(source.device).multi_processor_count
    sums = torch.empty(programs, device=source.device)
    steps = triton.cdiv(source.numel(), programs * BLOCK)
    _read_kernel[(programs,)](source, sums, source.numel(), steps, BLOCK=BLOCK, num_warps=8)
    return sums


def empty(spot: Tensor, *, early: bool = False) -> None:
    """Launches a kernel that does nothing; `early` lets the next one start before this one has ended."""
    options: dict[str, Any] = {"launch_pdl": True} if early else {}
    _empty_kernel[(1,)](spot, EARLY=early, num_warps=1, **options)
