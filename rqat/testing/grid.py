"""Whether a quantized weight is on its grid, and whether two are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contracts import QuantizedWeight
from ..grids import grid_of
from ..scheme import Scheme
from .suite import expect

if TYPE_CHECKING:
    import torch


def same(one: QuantizedWeight, two: QuantizedWeight) -> bool:
    """Whether every part is equal in type and to the bit; schemes and notes do not count."""
    theirs = two.state()
    return all(mine.dtype == theirs[part].dtype and mine.equal(theirs[part]) for part, mine in one.state().items())


def expect_on_grid(made: QuantizedWeight, shape: torch.Size, scheme: Scheme) -> None:
    """Fails unless a quantizer's result is on the grid of its scheme."""
    import torch

    values = grid_of(scheme)
    expect(isinstance(made, QuantizedWeight), f"quantize_linear returned {type(made).__name__}, not a QuantizedWeight")
    grid = (shape[0], scheme.groups(shape[1]))
    for part, dtype, wanted in (
        ("codes", torch.uint8, shape),
        ("scale", torch.float32, grid),
        ("zero", torch.uint8 if values.whole_zeros else torch.float32, grid),
    ):
        tensor = getattr(made, part)
        found = f"{tuple(tensor.shape)} {tensor.dtype}"
        expect(
            tensor.dtype == dtype and tensor.shape == wanted,
            f"{scheme}: {part} is {found}, not {tuple(wanted)} {dtype}",
        )
    expect(int(made.codes.max()) <= scheme.max_code, f"{scheme}: codes up to {int(made.codes.max())}")
    highest = int(made.zero.max()) if values.whole_zeros else 0
    expect(highest <= scheme.max_code, f"{scheme}: zero points up to {highest}")
    expect((made.scale > 0).all() and made.scale.isfinite().all(), f"{scheme}: a scale is not finite and positive")
    snapped = made.scale.equal(values.snap(made.scale))
    expect(snapped, f"{scheme}: a scale is not a value that bfloat16 and float16 both hold (see rqat.Grid.snap)")
    middle = not (values.uniform and scheme.symmetric) or bool((made.zero == scheme.middle).all())
    expect(middle, f"{scheme}: symmetric, but a zero point is not {scheme.middle}")
