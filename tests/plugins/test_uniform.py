"""uniform: the arithmetic of the kernels, by way of a grid object."""

from __future__ import annotations

import pytest
import torch

from rqat import Scheme, grid_of
from rqat.testing import GridSuite
from rqat_kernels.grid import dequantize, fit_clip, quantize
from rqat_kernels.latent_step import latent_step

SCHEMES = ["w2g32", "w3g64-sym", "w4-row", "w8g128"]


def weight(rows: int = 24, width: int = 256) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spelling", SCHEMES)
def test_a_layer_is_what_the_kernels_make_of_it(spelling: str) -> None:
    scheme, w = Scheme.parse(spelling), weight()
    grid = grid_of(scheme)
    scale, zero = fit_clip(w, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric)
    assert all(torch.equal(*pair) for pair in zip(grid.fit_layer(w), (scale, zero), strict=True))
    layer = grid.quantize_layer(w, scale, zero)
    assert torch.equal(layer.codes, quantize(w, scale, zero, scheme.max_code))
    assert torch.equal(layer.zero, zero.byte())
    assert torch.equal(grid.decode_layer(layer), dequantize(layer.codes, layer.scale, layer.zero))
    assert layer.scheme == scheme


@pytest.mark.parametrize("spelling", SCHEMES)
def test_importance_per_input_feature_is_that_of_the_clip_search(spelling: str) -> None:
    scheme, w = Scheme.parse(spelling), weight()
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.1
    expected = fit_clip(w, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric, importance=importance)
    for found, wanted in zip(grid_of(scheme).fit_layer(w, importance), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_latent_step(dtype: torch.dtype) -> None:
    scheme = Scheme.parse("w2g32")
    rows = weight().view(-1, 32).to(dtype)
    scale, zero = grid_of(scheme).fit(rows * 0.7)
    grad = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = latent_step(grad, rows, scale, zero, scheme.max_code)
    for found, wanted in zip(grid_of(scheme).gradients(grad, rows, scale, zero), expected, strict=True):
        assert torch.equal(found, wanted)


def test_zero_points_are_fixed_where_the_scheme_is_symmetric() -> None:
    assert grid_of(Scheme.parse("w2g32-sym")).fixed_zero
    assert not grid_of(Scheme.parse("w2g32")).fixed_zero


class TestConformance(GridSuite):
    """What every grid promises."""

    name = "uniform"
