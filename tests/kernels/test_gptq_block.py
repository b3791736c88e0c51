"""The blocked column loop against the definition, in float64, column by column."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.gptq_block import gptq_block, gptq_loop
from rqat_kernels.grid import dequantize, fit_minmax


def problem(out: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, Hessian and `U` with `U^T U = H^-1`, all float64; inputs are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    inputs = torch.randn(2 * features, features, generator=generator, dtype=torch.float64)
    inputs = (inputs * torch.arange(1, features + 1) ** -0.5) @ mixing
    hessian = inputs.T @ inputs
    hessian = hessian / hessian.diagonal().mean() + 0.01 * torch.eye(features)
    weight = torch.randn(out, features, generator=generator, dtype=torch.float64) * 0.03
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    return weight, hessian, factor


def loss(codes: Tensor, scale: Tensor, zero: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """`tr((w_hat - w) H (w_hat - w)^T)`."""
    error = dequantize(codes, scale, zero).double() - weight
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize(("features", "group", "columns"), [
    (256, 128, 128), (256, 64, 128), (192, 24, 128), (256, 256, 128), (272, 136, 64), (256, 32, 256), (128, 8, 1),
])  # fmt: skip
@pytest.mark.parametrize("refitted", [False, True])
def test_blocked_equals_the_definition(features: int, group: int, columns: int, refitted: bool) -> None:
    weight, hessian, factor = problem(48, features)
    scale, zero = fit_minmax(weight, features // group, 3, symmetric=False)
    group_of = torch.arange(features) // group
    seen: list[slice] = []

    def refit(part: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        assert part.shape == (48, group)
        seen.append(where)
        return fit_minmax(part, 1, 3, symmetric=False)

    how = refit if refitted else None
    expected = gptq_loop(weight, factor, scale, zero, 3, group_of, refit=how)
    got = gptq_block(weight, factor, scale, zero, 3, group_of, refit=how, columns=columns)
    assert got[0].shape == weight.shape
    assert got[0].dtype == torch.uint8
    assert (got[0] == expected[0]).float().mean() >= 0.99
    assert loss(*got, weight, hessian) == pytest.approx(loss(*expected, weight, hessian), rel=1e-4)
    if refitted:
        assert seen == 2 * [slice(a, a + group) for a in range(0, features, group)]
    else:
        assert torch.equal(got[1], scale.float())
        assert torch.equal(got[2], zero.float())


def test_the_loss_is_the_sum_of_squared_errors_passed_on() -> None:
    # With one column nothing is passed on; the formula of the docstring then is (w_hat - w)^2 H.
    weight, hessian, factor = problem(16, 1)
    scale, zero = fit_minmax(weight, 1, 3, symmetric=False)
    codes, scale, zero = gptq_loop(weight, factor, scale, zero, 3, torch.zeros(1, dtype=torch.long))
    error = (dequantize(codes, scale, zero) - weight) / factor[0, 0]
    assert loss(codes, scale, zero, weight, hessian) == pytest.approx(float(error.square().sum()), rel=1e-6)


def test_columns_of_a_group_need_not_be_neighbours() -> None:
    weight, _, factor = problem(32, 128)
    group_of = torch.arange(128)[torch.randperm(128, generator=torch.Generator().manual_seed(1))] // 32
    scale, zero = torch.rand(32, 4) * 0.02 + 0.02, torch.ones(32, 4)
    expected = gptq_loop(weight, factor, scale, zero, 3, group_of)
    got = gptq_block(weight, factor, scale, zero, 3, group_of)
    assert (got[0] == expected[0]).float().mean() >= 0.99


def test_inputs_are_left_as_they_were() -> None:
    weight, _, factor = problem(8, 64)
    weight, factor = weight.float(), factor.float()
    scale, zero = fit_minmax(weight, 2, 3, symmetric=False)
    before = [t.clone() for t in (weight, factor, scale, zero)]
    for run in (gptq_loop, gptq_block):
        run(
            weight,
            factor,
            scale,
            zero,
            3,
            torch.arange(64) // 32,
            refit=lambda part, _: fit_minmax(part, 1, 3, symmetric=False),
        )
        assert all(torch.equal(a, b) for a, b in zip(before, (weight, factor, scale, zero), strict=True))
