"""Whether a quantized weight is on its grid, and whether two are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contracts import QuantizedWeight
from ..scheme import Scheme
from .suite import expect

if TYPE_CHECKING:
    import torch


def same(one: QuantizedWeight, two: QuantizedWeight) -> bool:
    return all(
        getattr(one, part).dtype == getattr(two, part).dtype and getattr(one, part).equal(getattr(two, part))
        for part in ("codes", "scale", "zero")
    )


def expect_on_grid(made: QuantizedWeight, shape: torch.Size, scheme: Scheme) -> None:
    import torch

    from rqat_kernels.grid import snap_scale

    expect(isinstance(made, QuantizedWeight), f"quantize_linear returned {type(made).__name__}, not a QuantizedWeight")
    grid = (shape[0], scheme.groups(shape[1]))
    for part, dtype, wanted in (
        ("codes", torch.uint8, shape),
        ("scale", torch.float32, grid),
        ("zero", torch.uint8, grid),
    ):
        tensor = getattr(made, part)
        found = f"{tuple(tensor.shape)} {tensor.dtype}"
        expect(
            tensor.dtype == dtype and tensor.shape == wanted,
            f"{scheme}: {part} is {found}, not {tuple(wanted)} {dtype}",
        )
    expect(int(made.codes.max()) <= scheme.max_code, f"{scheme}: codes up to {int(made.codes.max())}")
    expect(int(made.zero.max()) <= scheme.max_code, f"{scheme}: zero points up to {int(made.zero.max())}")
    expect((made.scale > 0).all() and made.scale.isfinite().all(), f"{scheme}: a scale is not finite and positive")
    snapped = made.scale.equal(snap_scale(made.scale))
    expect(
        snapped, f"{scheme}: a scale is not a value that bfloat16 and float16 both hold (rqat_kernels.grid.snap_scale)"
    )
    middle = not scheme.symmetric or bool((made.zero == scheme.middle).all())
    expect(middle, f"{scheme}: symmetric, but a zero point is not {scheme.middle}")
