"""hqq: zero points that lose no more than the span's, and less where they are real numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from rqat import Context, LinearStats, QuantizedWeight, Scheme, grid_of
from rqat.registry import Registry
from rqat.testing import QuantizerSuite
from rqat_hqq import HalfQuadratic, Options
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest
from tests.plugin_maker import write_plugin

GRIDS = '''
"""Evenly spaced values with real zero points, written as `q s + z` and as `(q - z) s`; and one that ignores them."""

import rqat

class Above(rqat.Grid):
    whole_zeros = False

    def fit(self, weight, importance=None):
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        scale = self.snap((high - low).clamp(min=1e-30) / self.scheme.max_code)
        return scale, self.stored(low, scale)

    def quantize(self, weight, scale, zero):
        return ((weight - self.lowest(scale, zero)) / scale).round().clamp(0, self.scheme.max_code).byte()

    def decode(self, codes, scale, zero):
        return codes * scale + self.lowest(scale, zero)

    def gradients(self, grad, latent, scale, zero):
        raise NotImplementedError

    def stored(self, low, scale):
        return low

    def lowest(self, scale, zero):
        return zero

class Below(Above):
    def stored(self, low, scale):
        return -low / scale

    def lowest(self, scale, zero):
        return -zero * scale

class Fixed(Above):
    def lowest(self, scale, zero):
        return -scale * self.scheme.max_code / 2

@rqat.hookimpl
def register_grids(register):
    for kind in (Above, Below, Fixed):
        register(f"acme-{kind.__name__.lower()}", load=f":{kind.__name__}", bits=(2, 3, 4))
'''


@pytest.fixture
def real_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A third party's grids, known meanwhile."""
    write_plugin(tmp_path, "acme-real-grids", GRIDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    Registry.discover()
    yield
    monkeypatch.undo()
    Registry.discover()


def weights() -> torch.Tensor:
    """Sizes of a real layer, a few large outliers."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator) * 0.02
    weight[torch.rand(weight.shape, generator=generator) < 0.02] *= 4
    return weight


def quantized(weight: torch.Tensor, spelling: str, **options: float) -> QuantizedWeight:
    return HalfQuadratic(Options(**options)).quantize_linear(weight, LinearStats(), Scheme.parse(spelling))


def norms(weight: torch.Tensor, layer: QuantizedWeight, lp_norm: float = 0.7) -> torch.Tensor:
    """What each group loses `(O, G)`."""
    error = grid_of(layer.scheme).decode_layer(layer).double() - weight
    return error.abs().pow(lp_norm).view(*layer.scale.shape, -1).sum(-1)


@pytest.mark.parametrize("lp_norm", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("spelling", ["w2g32", "w3g64", "w4g64", "w4-row", "w8g128"])
def test_no_group_loses_more_than_by_rounding(spelling: str, lp_norm: float) -> None:
    weight = weights()
    rounded = RoundToNearest(RtnOptions()).quantize_linear(weight, LinearStats(), Scheme.parse(spelling))
    searched = quantized(weight, spelling, lp_norm=lp_norm)
    assert searched.scale.equal(rounded.scale)
    assert (norms(weight, searched, lp_norm) <= norms(weight, rounded, lp_norm) * (1 + 1e-5)).all()


@pytest.mark.parametrize("spelling", ["w2g32-sym", "w4-row-sym"])
def test_symmetric_schemes_are_rounded(spelling: str) -> None:
    rounded = RoundToNearest(RtnOptions()).quantize_linear(weights(), LinearStats(), Scheme.parse(spelling))
    assert quantized(weights(), spelling).equals(rounded)


@pytest.mark.usefixtures("real_grids")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_real_zero_points_lose_less(bits: int) -> None:
    """On whole ones nothing to speak of is gained: the same weights on the uniform grid stay as they are rounded."""
    weight = weights()
    for name in ("above", "below"):
        spelling = f"w{bits}g64-acme-{name}"
        started, searched = (quantized(weight, spelling, iterations=n) for n in (0, 20))
        assert searched.zero.dtype == torch.float32
        assert (norms(weight, searched) <= norms(weight, started) * (1 + 1e-5)).all()
        assert norms(weight, searched).sum() < 0.98 * norms(weight, started).sum()
    uniform = [quantized(weight, f"w{bits}g64", iterations=n) for n in (0, 20)]
    assert norms(weight, uniform[1]).sum() > 0.999 * norms(weight, uniform[0]).sum()


@pytest.mark.usefixtures("real_grids")
def test_how_a_grid_writes_its_zero_points_does_not_count() -> None:
    above, below = (quantized(weights(), f"w3g64-acme-{name}") for name in ("above", "below"))
    lowest = above.zero, -below.zero * below.scale
    assert ((lowest[0] - lowest[1]).abs() < 1e-3 * above.scale).float().mean() > 0.98


@pytest.mark.usefixtures("real_grids")
@pytest.mark.parametrize("spelling", ["w2g64-seq", "w3g64-acme-fixed"])
def test_grids_without_a_zero_point_to_search_keep_their_own_fit(spelling: str) -> None:
    grid = grid_of(Scheme.parse(spelling))
    assert quantized(weights(), spelling).equals(grid.quantize_layer(weights(), *grid.fit_layer(weights())))


@pytest.mark.parametrize("options", [{"lp_norm": 0}, {"lp_norm": 1.5}, {"iterations": -1}, {"beta": 10}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)


@pytest.mark.parametrize(("spelling", "words"), [("w4g64", "whole zero points"), ("w4g64-sym", "symmetric schemes")])
def test_the_plan_says_where_there_is_little_to_gain(spelling: str, words: str) -> None:
    (problem,) = Options().check(Context(schemes={"model.layers.0.mlp.up_proj": Scheme.parse(spelling)}))
    assert problem.text.startswith(words)
    assert problem.level == "note"
    assert not list(Options().check(Context(schemes={"model.layers.0.mlp.up_proj": Scheme.parse("w2g64-seq")})))


class TestConformance(QuantizerSuite):
    """What every quantizer promises."""

    name = "hqq"
