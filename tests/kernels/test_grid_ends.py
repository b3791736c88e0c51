"""The search that narrows either end of a span by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.grid import dequantize, ends, fit_clip, fit_ends, quantize, snap_scale

SHRINKS = 8


def weights(out: int = 24, features: int = 256, seed: int = 0) -> Tensor:
    """Rows of mixed sizes, heavy tails, and a mean that is not zero; a group of zeros and one of positives."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator) * torch.logspace(-3, 1, out)[:, None]
    weight[:, ::17] *= 5
    weight[5:9] += weight[5:9].abs().amax(1, keepdim=True) / 3
    weight[0, :128] = 0
    weight[1] = weight[1].abs()
    return weight


def cost(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, importance: Tensor | None = None) -> Tensor:
    """Of every group `(O, G)`."""
    error = dequantize(quantize(weight, scale, zero, max_code), scale, zero) - weight
    return (error.square() * (1 if importance is None else importance)).view(*scale.shape, -1).sum(-1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_costs_no_more_than_ends_narrowed_alike(bits: int, weighted: bool) -> None:
    weight, max_code = weights(), 2**bits - 1
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 4 if weighted else None
    found, alike = (
        fit(weight, 4, max_code, symmetric=False, importance=importance, shrinks=SHRINKS)
        for fit in (fit_ends, fit_clip)
    )
    ours, theirs = (cost(weight, *grid, max_code, importance) for grid in (found, alike))
    assert (ours <= theirs * (1 + 1e-5)).all()


def test_at_two_bits_it_costs_less() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    apart, alike = (cost(weight, *fit(weight, 4, 3, symmetric=False), 3).sum() for fit in (fit_ends, fit_clip))
    assert apart < 0.985 * alike


@pytest.mark.parametrize("bits", [2, 3])
def test_it_comes_close_to_trying_every_zero_point_and_scale(bits: int) -> None:
    weight, max_code = weights()[2:], 2**bits - 1
    grouped = weight.view(22, 4, -1)
    span = grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)
    least = torch.full_like(span, torch.inf)
    for zero in range(max_code + 1):
        for share in torch.linspace(1.2, 0.4, 60).tolist():
            scale = snap_scale(span * share / max_code)
            least = torch.minimum(least, cost(weight, scale, torch.full_like(scale, zero), max_code))
    found = fit_ends(weight, 4, max_code, symmetric=False, shrinks=SHRINKS)
    relative = cost(weight, *found, max_code) / least
    assert relative.median() < 1.02
    assert relative.mean() < 1.05


def test_an_end_without_outliers_is_left_where_it_is() -> None:
    weight = torch.linspace(-1, 1, 512)[None].clone()
    weight[0, -1] = 3
    scale, zero = fit_ends(weight, 1, 7, symmetric=False, shrinks=SHRINKS)
    low, high = -zero * scale, (7 - zero) * scale
    assert low == pytest.approx(-1, abs=0.2)
    assert high < 2.5


def test_a_symmetric_grid_has_one_end() -> None:
    weight = weights()
    found, plain = (fit(weight, 4, 3, symmetric=True, shrinks=SHRINKS) for fit in (fit_ends, fit_clip))
    assert all(torch.equal(*pair) for pair in zip(found, plain, strict=True))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights()
    importance = torch.rand(4, 64, 64)
    whole = [fit_ends(weight, 4, 3, symmetric=False, importance=each) for each in (None, importance @ importance.mT)]
    monkeypatch.setitem(ends.PIECE, "cpu", 1)
    parts = [fit_ends(weight, 4, 3, symmetric=False, importance=each) for each in (None, importance @ importance.mT)]
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_groups_of_zeros() -> None:
    scale, zero = fit_ends(torch.zeros(3, 64), 2, 3, symmetric=False)
    assert (scale == 1).all()
    assert (dequantize(quantize(torch.zeros(3, 64), scale, zero, 3), scale, zero) == 0).all()
