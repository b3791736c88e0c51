"""Kernels are tested on a GPU where there is one, by Triton's interpreter on the CPU elsewhere."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Every test draws the same numbers in every run: a bound that one draw in 300 passes would fail at random."""
    torch.manual_seed(0)


@pytest.fixture
def device() -> str:
    """Where a Triton kernel can be run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poison():
    """`poison(*shape, dtype=, device=)`: a tensor whose every element must be overwritten, or a comparison fails."""

    def make(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
        value = torch.nan if dtype.is_floating_point else 0x5A
        return torch.full(shape, value, dtype=dtype, device=device)

    return make
