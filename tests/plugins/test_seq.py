"""seq: the stretched elastic grid of ParetoQ, by its own formula, by autograd, and through training."""

from __future__ import annotations

import pytest
import torch

from rqat import LinearStats, Scheme, grid_of
from rqat.testing import GridSuite
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest

SCHEME = Scheme.parse("w2g32-seq")
GRID = grid_of(SCHEME)


def weight(rows: int = 48, width: int = 128) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * 0.02


def test_the_values_are_two_on_each_side_of_zero() -> None:
    scale = torch.tensor([[0.5]])
    values = GRID.decode(torch.arange(4, dtype=torch.uint8)[None], scale, torch.zeros(1, 1))
    assert values.tolist() == [[-0.75, -0.25, 0.25, 0.75]]


def test_it_is_the_formula_of_the_paper() -> None:
    """arXiv 2502.02631: `a (round(clip(w / a, -1, 1) 4/2 - 0.5) + 0.5) / 4 * 2` with `a = 2 s`, off ties and ends."""
    rows = weight().view(-1, 32)
    scale, zero = GRID.fit(rows)
    a = 2 * scale
    clipped = (rows / a).clamp(-1 + 1e-6, 1 - 1e-6)
    expected = a * ((clipped * 2 - 0.5).round() + 0.5) / 2
    torch.testing.assert_close(GRID.requantize(rows, scale, zero), expected, rtol=1e-6, atol=0)


def test_gradients_are_those_of_autograd_through_a_straight_through_floor() -> None:
    rows = weight().view(-1, 32).double()
    scale, zero = (part.double() for part in GRID.fit(rows * 0.6))
    grad = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w, s = rows.clone().requires_grad_(), scale.clone().requires_grad_()
    share = w / s
    straight = share + (share.floor() + 0.5 - share).detach()
    ((straight.clamp(-1.5, 1.5) * s) * grad).sum().backward()
    of_weight, of_scale, of_zero = GRID.gradients(grad, rows, scale, zero)
    torch.testing.assert_close(of_weight, w.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(of_scale, s.grad, rtol=0, atol=1e-12)
    assert not of_zero.any()
    assert (of_weight == 0).float().mean() > 0.001  # some weights were beyond the range


def test_it_loses_less_than_the_symmetric_uniform_grid() -> None:
    """Which has as many bits and no zero point either, but only one value above zero."""
    rows = weight(256).view(-1, 32)
    errors = []
    for spelling in ("w2g32-seq", "w2g32-sym"):
        grid = grid_of(Scheme.parse(spelling))
        errors.append((grid.requantize(rows, *grid.fit(rows)) - rows).square().sum())
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"act_order": False, "static_groups": True}])
def test_gptq_does_better_than_rounding(options: dict[str, bool]) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(512, 128, generator=generator) @ torch.randn(128, 128, generator=generator) / 11
    hessian, w = inputs.T @ inputs / 512, weight()
    errors = []
    for quantizer in (Gptq(GptqOptions(**options)), RoundToNearest(RtnOptions())):
        layer = quantizer.quantize_linear(w, LinearStats(tokens=512, hessian=hessian), SCHEME)
        assert layer.scheme == SCHEME
        delta = GRID.decode_layer(layer) - w
        errors.append(float(((delta @ hessian) * delta).sum()))
    assert errors[0] < 0.7 * errors[1]


class TestConformance(GridSuite):
    """What every grid promises."""

    name = "seq"
