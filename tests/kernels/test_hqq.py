"""HQQ's fit: never worse than where it starts, better where there is room, and the kernel against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.dispatch import has_triton
from rqat_kernels.grid import fit_minmax
from rqat_kernels.hqq import fit_hqq, reference


def weights(out: int = 24, features: int = 256, seed: int = 0) -> Tensor:
    """Rows small and large, a few heavy tails, a group of zeros, and rows on one side of zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator) * torch.logspace(-4, 2, out)[:, None]
    weight[:, ::17] *= 5
    weight[0, : features // 2] = 0
    weight[1] = weight[1].abs()
    weight[2] = -weight[2].abs()
    return weight


def span(weight: Tensor, groups: int, max_code: int) -> tuple[Tensor, Tensor]:
    return fit_minmax(weight, groups, max_code, symmetric=False)


def norms(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, lp_norm: float = 0.7) -> Tensor:
    """What each group loses `(O, G)`, in units of its scale, in float64."""
    share = weight.double().view(*scale.shape, -1) / scale.double()[..., None]
    at = share + zero.double()[..., None]
    return (at - at.round().clamp(0, max_code)).abs().pow(lp_norm).sum(-1)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("lp_norm", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 8])
def test_no_group_loses_more_than_where_it_started(bits: int, groups: int, lp_norm: float, whole: bool) -> None:
    weight, max_code = weights(), 2**bits - 1
    scale, start = span(weight, groups, max_code)
    zero = fit_hqq(weight, scale, start, max_code, whole=whole, lp_norm=lp_norm)
    assert zero.equal(zero.round().clamp(0, max_code)) == whole
    before, after = (norms(weight, scale, one, max_code, lp_norm) for one in (start, zero))
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_real_zero_points_lose_less_than_whole_ones(bits: int) -> None:
    """Normal weights with outliers: 3 to 4.5 % less, while whole ones can but move the window over values that stay."""
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(1))
    weight[:, ::31] *= 4
    scale, start = span(weight, 1, 2**bits - 1)
    before = norms(weight, scale, start, 2**bits - 1).sum()
    whole, real = (fit_hqq(weight, scale, start, 2**bits - 1, whole=whole) for whole in (True, False))
    assert norms(weight, scale, real, 2**bits - 1).sum() < 0.98 * before
    assert norms(weight, scale, whole, 2**bits - 1).sum() > 0.999 * before


@pytest.mark.parametrize("off", [-2, 2])
def test_a_window_that_is_off_is_moved(off: int) -> None:
    weight = weights()
    scale, zero = span(weight, 4, 7)
    start = (zero + off).clamp(0, 7)
    found = fit_hqq(weight, scale, start, 7)
    assert norms(weight, scale, found, 7).sum() < 0.985 * norms(weight, scale, start, 7).sum()


def test_one_iteration_is_the_formula() -> None:
    """Shrinkage and closed form written out for one group, real zero points, in float64."""
    weight = weights(8, 32, seed=3)[4:5]
    scale, start = span(weight, 1, 3)
    w, s, z = weight.double(), scale.double(), start.double()
    codes = (w / s + z).round().clamp(0, 3)
    error = w / s - (codes - z)
    kept = error.sign() * torch.relu(error.abs() - error.abs() ** -0.3 / 10)
    assert 0 < (kept != 0).sum() < kept.numel()
    expected = (codes - w / s + kept).mean()
    found = fit_hqq(weight, scale, start, 3, whole=False, iterations=1)
    improves = norms(weight, scale, expected.view(1, 1), 3) < norms(weight, scale, start, 3)
    assert improves.all()
    torch.testing.assert_close(found.double().squeeze(), expected, rtol=1e-5, atol=1e-5)


def test_no_iterations_and_no_errors_change_nothing() -> None:
    weight = weights()
    scale, start = span(weight, 2, 7)
    assert fit_hqq(weight, scale, start, 7, iterations=0).equal(start)
    on_grid = torch.tensor([[-0.5, 0.0, 0.5, 1.0] * 8, [0.0, 0.25, 0.5, 0.75] * 8])
    scale, start = span(on_grid, 1, 3)
    assert fit_hqq(on_grid, scale, start, 3, whole=False).tolist() == [[1.0], [0.0]]


def test_the_unit_of_the_weights_does_not_count() -> None:
    """Powers of two move every scale exactly, so the zero points must be the same."""
    weight = weights()[4:]
    scale, start = span(weight, 4, 7)
    zero = fit_hqq(weight, scale, start, 7, whole=False)
    for factor in (2.0**-6, 2.0**5):
        assert fit_hqq(weight * factor, scale * factor, start, 7, whole=False).equal(zero)


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_kernel_chooses_as_the_reference(bits: int, whole: bool, device: str) -> None:
    from rqat_kernels.hqq import kernel

    shapes = [(12, 2, 128), (5, 3, 48), (3, 1, 300)]
    dtypes = [torch.float32, torch.float16]
    if device == "cuda":
        shapes += [(2048, 8, 128), (300, 1, 8192), (1001, 3, 1000)]
        dtypes.append(torch.bfloat16)
    max_code = 2**bits - 1
    near = total = 0
    for number, (out, groups, group) in enumerate(shapes):
        exact = weights(out, groups * group, seed=number).to(device)
        for dtype in dtypes:
            weight = exact.to(dtype)
            scale, start = span(weight, groups, max_code)
            for how in ({}, {"lp_norm": 1.0, "iterations": 3}):
                got, want = (
                    fit(weight, scale, start, max_code, whole=whole, **how)
                    for fit in (kernel.fit_hqq, reference.fit_hqq)
                )
                near, total = near + int(((got - want).abs() < 1e-3).sum()), total + want.numel()
                lp_norm = how.get("lp_norm", 0.7)
                ours, theirs, before = (norms(weight, scale, one, max_code, lp_norm) for one in (got, want, start))
                assert (ours <= before * (1 + 1e-5)).all()  # powers by approximation: 1e-6 relative
                # Near its end a search may stop an iteration sooner or later, and pass a zero point more or less.
                torch.testing.assert_close(ours.sum(), theirs.sum(), rtol=1e-3, atol=1e-6)
    assert near >= 0.97 * total, f"{total - near} of {total} zero points differ"


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
def test_the_kernel_takes_any_layout(device: str) -> None:
    from rqat_kernels.hqq import kernel

    weight = weights().to(device)
    scale, start = span(weight, 2, 3)
    got = kernel.fit_hqq(weight.T.contiguous().T, scale.T.contiguous().T, start.byte(), 3, whole=False)
    assert got.equal(kernel.fit_hqq(weight, scale, start, 3, whole=False))
    assert kernel.fit_hqq(weight[:0], scale[:0], start[:0], 3).shape == (0, 2)


def test_it_is_known_to_torch() -> None:
    weight = weights()
    arguments = (weight, *span(weight, 2, 3), 3, False, 0.7, 5)
    torch.library.opcheck(torch.ops.rqat.fit_hqq, arguments, test_utils=("test_schema", "test_faketensor"))
    assert torch.ops.rqat.fit_hqq(*arguments).equal(fit_hqq(*arguments[:4], whole=False, iterations=5))
