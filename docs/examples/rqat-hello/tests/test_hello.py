"""The suite of quantizers, and what is special about this one."""

import pytest
import torch
from rqat_hello import Options, PercentileClip

import rqat
import rqat.testing
from rqat_kernels.grid import dequantize, fit_minmax


class TestHello(rqat.testing.QuantizerSuite):
    name = "hello"


def decoded(weight: torch.Tensor, scheme: rqat.Scheme, percentile: float) -> torch.Tensor:
    made = PercentileClip(Options(percentile=percentile)).quantize_linear(weight, rqat.LinearStats(), scheme)
    return dequantize(made.codes, made.scale, made.zero)


def random_weight() -> torch.Tensor:
    return torch.randn(16, 256, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spelling", ["w2g128", "w3g64-sym", "w4-row"])
def test_a_percentile_of_100_is_min_max_rounding(spelling):
    scheme, weight = rqat.Scheme.parse(spelling), random_weight()
    made = PercentileClip(Options(percentile=100)).quantize_linear(weight, rqat.LinearStats(), scheme)
    scale, zero = fit_minmax(weight, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric)
    assert torch.equal(made.scale, scale)
    assert torch.equal(made.zero, zero.to(torch.uint8))


def test_an_outlier_costs_the_other_weights_less():
    scheme, weight = rqat.Scheme.parse("w3g128"), random_weight()
    weight[:, 5] = 40.0
    others = torch.arange(256) != 5
    error = {p: (decoded(weight, scheme, p) - weight)[:, others].square().mean() for p in (98.0, 100.0)}
    assert error[98.0] < 0.5 * error[100.0]


@pytest.mark.parametrize("percentile", [50, 101, -1])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(ValueError, match="percentile"):
        Options(percentile=percentile)
