"""Sums of `x x^T` against float64."""

from __future__ import annotations

import pytest
import torch

from rqat_kernels.hessian import add_gram, reference

SUMS = 2e-5
"""Float32 sums of exact products, relative to the largest entry; matrix units round each step of the sum downwards."""

LONG_SUMS = 4e-5
"""The same for sums over thousands of tokens. Matrix units align the 16 products of a step and the sum so far to the
largest of them and cut off what lies two bits behind float32's last: half of 2**-25 on average, for each of 17 terms.
On the diagonal all terms are positive, and the loss grows with the sum: `steps * 17 * 2**-26 / 2`, 4e-5 for 5000 tokens
in 313 steps, the longest share here. A sum is 0.7 of the power of two above it on average: a GPU measured 2.6e-5.
"""


def upper(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.double().triu()


@pytest.mark.parametrize(("tokens", "width"), [(100, 64), (7, 600), (64, 513)])
def test_the_entry_adds_to_the_upper_triangle(tokens: int, width: int) -> None:
    x, before = torch.randn(tokens, width), torch.randn(width, width)
    got = before.clone()
    add_gram(got, x)
    expected = before.double() + x.double().T @ x.double()
    torch.testing.assert_close(upper(got), upper(expected), rtol=1e-5, atol=1e-4)


def test_the_entry_is_an_op_that_changes_its_first_argument() -> None:
    torch.library.opcheck(torch.ops.rqat.add_gram.default, (torch.randn(16, 16), torch.randn(8, 16)))


@pytest.mark.parametrize(("tokens", "width", "shares"), [
    (64, 64, 1), (50, 96, 1), (96, 64, 3), (33, 72, 2), (1, 17, 1), (64, 128, 4),
])  # fmt: skip
def test_the_kernel_equals_float64(tokens: int, width: int, shares: int, device: str, poison) -> None:
    pytest.importorskip("triton", reason="the kernel is written in it")
    from rqat_kernels.hessian.kernel import Config
    from rqat_kernels.hessian.kernel import add_gram as launch

    config = Config(rows=32, columns=64, tokens=16, warps=4, stages=2)
    x = torch.randn(tokens, width, dtype=torch.float16, device=device)
    got = poison(width, width, device=device)
    got.copy_(before := torch.randn(width, width, device=device))
    launch(got, x, config=config, shares=shares)
    expected = before.double() + x.double().T @ x.double()
    torch.testing.assert_close(upper(got), upper(expected), rtol=0, atol=SUMS * float(expected.abs().max()))


def test_rows_may_lie_apart(device: str) -> None:
    pytest.importorskip("triton", reason="the kernel is written in it")
    from rqat_kernels.hessian.kernel import Config
    from rqat_kernels.hessian.kernel import add_gram as launch

    config = Config(rows=32, columns=32, tokens=16, warps=4, stages=2)
    whole = torch.randn(40, 96, dtype=torch.float16, device=device)
    for x in (whole[::2, :64], whole[:, ::2]):
        got = torch.zeros(x.shape[1], x.shape[1], device=device)
        launch(got, x, config=config)
        expected = x.double().T @ x.double()
        torch.testing.assert_close(upper(got), upper(expected), rtol=0, atol=SUMS * float(expected.abs().max()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "width"), [(16384, 1024), (16384, 3072), (5000, 2560), (777, 9728), (4096, 4096)])
def test_full_sizes_on_a_gpu(tokens: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(tokens, width, device="cuda").to(dtype)
    first, second = (torch.zeros(width, width, device="cuda") for _ in range(2))
    add_gram(first, x)
    add_gram(second, x)
    assert torch.equal(first.triu(), second.triu()), "two runs differ"
    expected = torch.zeros_like(first)
    reference.add_gram(expected, x)
    error = (first - expected).triu().norm() / expected.triu().norm()
    assert error < LONG_SUMS


def test_long_inputs_are_added_piece_by_piece(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the kernel is written in it")
    from rqat_kernels.hessian import kernel

    monkeypatch.setattr(kernel, "LONGEST", 32)
    config = kernel.Config(rows=32, columns=32, tokens=16, warps=4, stages=2)
    x = torch.randn(150, 40, dtype=torch.float16, device=device)
    for shares in (1, 2):
        got = torch.zeros(40, 40, device=device)
        kernel.add_gram(got, x, config=config, shares=shares)
        expected = x.double().T @ x.double()
        torch.testing.assert_close(upper(got), upper(expected), rtol=0, atol=SUMS * float(expected.abs().max()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("width", [1024, 4096])
@pytest.mark.parametrize("shares", [1, None])
def test_many_calls_lose_no_more_than_one(width: int, shares: int | None) -> None:
    """16 calls of 4096 tokens: 256 steps each lose `256 * 17 * 2**-26 / 2 = 3.3e-5` at most (`LONG_SUMS`), whatever
    was there before; adding to the total rounds to nearest, 16 times 2**-24 = 1e-6. A sum that went on from the total
    would have 4096 steps behind it, and lose 16 times as much."""
    from rqat_kernels.hessian.kernel import add_gram as launch

    first, second = (torch.zeros(width, width, device="cuda") for _ in range(2))
    expected = torch.zeros(width, width, dtype=torch.float64, device="cuda")
    for _ in range(16):
        x = torch.randn(4096, width, device="cuda").bfloat16()
        launch(first, x, shares=shares)
        launch(second, x, shares=shares)
        expected.addmm_(x.double().T, x.double())
    assert torch.equal(first.triu(), second.triu()), "two runs differ"
    diagonal = (first.diagonal().double() / expected.diagonal() - 1).abs().max()
    assert diagonal < LONG_SUMS
