"""The blocked column loop, and the kernel, against the definition, in float64, column by column."""

from __future__ import annotations

from importlib.util import find_spec

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


@pytest.mark.parametrize("columns", [128, 24, 1])
def test_whole_groups_may_come_in_any_order(columns: int, device: str) -> None:
    weight, _, factor = problem(24, 96)
    scale, zero = fit_minmax(weight, 6, 3, symmetric=False)
    group_of = torch.tensor([4, 0, 5, 2, 1, 3]).repeat_interleave(16)

    def refit(part: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        return fit_minmax(part, 1, 3, symmetric=False)

    expected = gptq_loop(weight, factor, scale, zero, 3, group_of, refit=refit)
    runs = [gptq_block(weight, factor, scale, zero, 3, group_of, refit=refit, columns=columns)]
    if find_spec("triton"):
        from rqat_kernels.gptq_block.kernel import gptq_block as launch

        arguments = [tensor.to(device) for tensor in (weight, factor, scale, zero)]
        runs.append(launch(*arguments, 3, group_of.to(device), refit=refit, columns=columns))
    for codes, scales, zeros in runs:
        assert (codes.cpu() == expected[0]).float().mean() >= 0.99
        assert torch.allclose(scales.cpu(), expected[1].float(), rtol=2**-6)
        assert (zeros.cpu() == expected[2]).float().mean() >= 0.95


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


@pytest.mark.parametrize(("out", "features", "group", "columns", "refitted"), [
    (19, 96, 32, 32, False), (19, 96, 32, 32, True), (8, 80, 16, 48, True), (5, 64, 64, 24, True), (3, 40, 8, 1, False),
    (9, 128, 32, 512, False),
])  # fmt: skip
def test_the_kernel_equals_the_definition(
    out: int, features: int, group: int, columns: int, refitted: bool, device: str
) -> None:
    pytest.importorskip("triton", reason="the kernel is written in it")
    from rqat_kernels.gptq_block.kernel import gptq_block as launch

    weight, hessian, factor = problem(out, features)
    scale, zero = fit_minmax(weight, features // group, 3, symmetric=False)
    group_of = torch.arange(features) // group

    def refit(part: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        assert part.shape == (out, group)
        return fit_minmax(part, 1, 3, symmetric=False)

    how = refit if refitted else None
    expected = gptq_loop(weight, factor, scale, zero, 3, group_of, refit=how)
    arguments = [tensor.to(device) for tensor in (weight, factor, scale, zero)]
    got = [t.cpu() for t in launch(*arguments, 3, group_of.to(device), refit=how, columns=columns)]
    assert got[0].shape == weight.shape
    assert (got[0] == expected[0]).float().mean() >= 0.99
    assert loss(*got, weight, hessian) == pytest.approx(loss(*expected, weight, hessian), rel=1e-4)


def test_the_kernel_rounds_ties_to_even_and_takes_groups_in_any_order(device: str) -> None:
    pytest.importorskip("triton", reason="the kernel is written in it")
    from rqat_kernels.gptq_block.kernel import gptq_block as launch

    # With U the identity nothing is passed on, and every column is rounded by itself; weights are halves of the scale.
    group_of = torch.arange(64)[torch.randperm(64, generator=torch.Generator().manual_seed(2))] // 16
    scale, zero = torch.rand(12, 4).add(0.5).bfloat16().float(), torch.randint(0, 8, (12, 4)).float()
    weight = torch.randint(-20, 20, (12, 64)) / 2 * scale[:, group_of]
    expected = (torch.round(weight / scale[:, group_of]) + zero[:, group_of]).clamp(0, 7)
    tensors = [tensor.to(device) for tensor in (weight, torch.eye(64), scale, zero)]
    codes, *_ = launch(*tensors, 7, group_of.to(device), columns=24)
    assert torch.equal(codes.cpu().float(), expected)


def test_the_entry_is_an_op() -> None:
    weight, _, factor = problem(4, 32)
    scale, zero = fit_minmax(weight, 2, 3, symmetric=False)
    arguments = (weight.float(), factor.float(), scale, zero, 3, torch.arange(32) // 16, 128)
    torch.library.opcheck(torch.ops.rqat.gptq_block.default, arguments)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("out", "features"), [(4096, 1024), (1024, 3072), (2560, 4096), (6144, 2560)])
@pytest.mark.parametrize("refitted", [False, True])
def test_full_sizes_on_a_gpu(out: int, features: int, refitted: bool) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4 * features, features, device="cuda", dtype=torch.float64)
    inputs *= torch.randn(features, device="cuda", dtype=torch.float64).mul(0.7).exp()
    inputs = inputs @ torch.randn(features, features, device="cuda", dtype=torch.float64).div(features**0.5)
    hessian = inputs.T @ inputs / len(inputs)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight = torch.randn(out, features, device="cuda", dtype=torch.float64) * 0.03
    scale, zero = fit_minmax(weight, features // 128, 3, symmetric=False)
    group_of = torch.arange(features, device="cuda") // 128
    how = (lambda part, where: fit_minmax(part, 1, 3, symmetric=False)) if refitted else None
    expected = gptq_loop(weight, factor, scale, zero, 3, group_of, refit=how)
    got = gptq_block(weight, factor, scale, zero, 3, group_of, refit=how)
    assert (got[0] == expected[0]).float().mean() >= 0.99
    assert loss(*got, weight, hessian) == pytest.approx(loss(*expected, weight, hessian), rel=1e-4)
    again = gptq_block(weight, factor, scale, zero, 3, group_of, refit=how)
    assert torch.equal(got[0], again[0]), "two runs differ"
