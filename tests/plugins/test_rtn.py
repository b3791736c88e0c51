"""rtn: each weight on the nearest point of its grid."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from rqat import LinearStats, Scheme
from rqat.testing import QuantizerSuite
from rqat_kernels.grid import dequantize
from rqat_rtn import Options, RoundToNearest

SCHEMES = ["w2g32", "w2g128", "w3g64", "w4-row", "w8g128", "w2g64-sym", "w3-row-sym", "w8g32-sym"]


def quantized(weight: torch.Tensor, spelling: str, **options: str):
    return RoundToNearest(Options(**options)).quantize_linear(weight, LinearStats(), Scheme.parse(spelling))


@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("spelling", SCHEMES)
def test_no_other_code_is_nearer(spelling: str, clip: str) -> None:
    weight, scheme = torch.randn(16, 256, generator=torch.Generator().manual_seed(0)), Scheme.parse(spelling)
    result = quantized(weight, spelling, clip=clip)
    assert result.codes.dtype == result.zero.dtype == torch.uint8
    assert result.scale.shape == result.zero.shape == (16, scheme.groups(256))
    assert result.note == ""
    error = (dequantize(result.codes, result.scale, result.zero) - weight).abs()
    for step in (-1, 1):
        other = (result.codes.int() + step).clamp(0, scheme.max_code)
        assert (error <= (dequantize(other, result.scale, result.zero) - weight).abs() + 1e-6).all()


def test_mse_clip_has_less_error() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [
        (dequantize(r.codes, r.scale, r.zero) - weight).square().mean()
        for r in (quantized(weight, "w2g128", clip=clip) for clip in ("minmax", "mse"))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        Options(clip="most")
    with pytest.raises(ValidationError):
        Options(damp=0.1)


class TestConformance(QuantizerSuite):
    """What every quantizer promises."""

    name = "rtn"
