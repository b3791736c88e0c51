"""latent_step against autograd through the grid in float64, and its properties."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rqat_kernels.dispatch import has_triton
from rqat_kernels.grid import snap_scale
from rqat_kernels.latent_step import latent_step, reference

OUT, IN = 6, 48


class Round(torch.autograd.Function):
    """Rounds; straight through in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def case(bits: int, groups: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Gradient, latent, scale and zero point; the latents reach beyond both ends of the grid."""
    g = torch.Generator().manual_seed(seed)
    q = 2**bits - 1
    grad = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    scale = torch.rand(OUT, groups, generator=g, dtype=torch.float64) + 0.1
    zero = torch.randint(0, q + 1, (OUT, groups), generator=g).double()
    codes = torch.rand(OUT, groups, IN // groups, generator=g, dtype=torch.float64) * (2 * q + 2) - q / 2 - 1
    weight = ((codes - zero[..., None]) * scale[..., None]).view(OUT, IN)
    return tuple(t.to(dtype) for t in (grad, weight, scale, zero))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_equals_autograd(bits: int, groups: int) -> None:
    grad, weight, scale, zero = case(bits, groups)
    q = 2**bits - 1
    w, s, z = (t.clone().requires_grad_() for t in (weight, scale, zero))
    codes = (Round.apply(w.view(OUT, groups, -1) / s[..., None]) + Round.apply(z)[..., None]).clamp(0, q)
    w_hat = ((codes - Round.apply(z)[..., None]) * s[..., None]).view(OUT, IN)
    w_hat.backward(grad)
    gw, gs, gz = latent_step(grad, weight, scale, zero, q)
    torch.testing.assert_close(gw, w.grad, rtol=1e-14, atol=0)  # autograd multiplies by s, then divides by it
    torch.testing.assert_close(gs, s.grad, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gz, z.grad, rtol=1e-13, atol=1e-13)
    assert (gw == 0).any()
    assert (gw != 0).any()


def test_is_linear_in_the_gradient() -> None:
    grad, weight, scale, zero = case(2, 3)
    other = torch.randn_like(grad)
    both = latent_step(2 * grad - 3 * other, weight, scale, zero, 3)
    parts = zip(latent_step(grad, weight, scale, zero, 3), latent_step(other, weight, scale, zero, 3), strict=True)
    for mine, (a, b) in zip(both, parts, strict=True):
        torch.testing.assert_close(mine, 2 * a - 3 * b, rtol=1e-12, atol=1e-12)


def test_the_scales_gradient_follows_the_rounding_error() -> None:
    """On grid points the rounding error is zero, so an inner weight says nothing about its scale."""
    grad, _, scale, zero = case(3, 3)
    codes = torch.randint(0, 8, (OUT, 3, IN // 3)).double()
    weight = ((codes - zero[..., None]) * scale[..., None]).view(OUT, IN)
    gw, gs, gz = latent_step(grad, weight, scale, zero, 7)
    torch.testing.assert_close(gw, grad, rtol=0, atol=0)
    torch.testing.assert_close(gs, torch.zeros_like(gs), rtol=0, atol=1e-13)
    assert not gz.any()


def test_a_group_outside_the_grid_moves_only_scale_and_zero() -> None:
    grad, weight, scale, zero = case(2, 3)
    far = torch.full_like(weight, 100.0)
    gw, gs, gz = latent_step(grad, far, scale, zero, 3)
    assert not gw.any()
    sums = grad.view(OUT, 3, -1).sum(-1)
    torch.testing.assert_close(gs, sums * (3 - zero))
    torch.testing.assert_close(gz, -scale * sums)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_16_bits_are_mapped_in_the_latents_dtype(dtype: torch.dtype) -> None:
    grad, weight, scale, zero = case(2, 3, dtype=torch.float32)
    rough = grad.to(dtype)
    for mine, exact in zip(
        latent_step(rough, weight, scale, zero, 3), latent_step(rough.float(), weight, scale, zero, 3), strict=True
    ):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, exact)


def kernel_cases(device: str) -> list[tuple[int, int, int, torch.dtype, torch.dtype]]:
    """Rows, features, groups, dtype of gradient and of latent; some fill no tile, some groups are no power of 2."""
    cases = [
        (6, 48, 3, torch.float32, torch.float32),
        (20, 256, 2, torch.float16, torch.float32),
        (3, 5000, 1, torch.float32, torch.float32),
        (1, 7, 7, torch.float16, torch.float16),
        (17, 160, 1, torch.float16, torch.float32),
    ]
    if device == "cuda":
        cases += [
            (1000, 1024, 8, torch.bfloat16, torch.float32),
            (257, 3072, 24, torch.bfloat16, torch.bfloat16),
            (300, 12288, 1, torch.bfloat16, torch.float32),
        ]
    return cases


@pytest.mark.skipif(not has_triton(), reason="the kernel is written in Triton; the dev extra has it")
def test_kernel(device: str) -> None:
    """`gw` to the bit; the sums as close to float64 as float32 sums of these terms come."""
    from rqat_kernels.latent_step import kernel

    for number, (out, features, groups, d_type, w_type) in enumerate(kernel_cases(device)):
        g = torch.Generator().manual_seed(number)
        scale = snap_scale(torch.rand(out, groups, generator=g) + 0.1)
        zero = torch.randint(0, 8, (out, groups), generator=g).float()
        codes = torch.rand(out, groups, features // groups, generator=g) * 16 - 4
        weight = ((codes - zero[..., None]) * scale[..., None]).view(out, features).to(w_type).to(device)
        grad = torch.randn(features, out, generator=g).T.to(device, d_type)  # not contiguous
        scale, zero = scale.to(device), zero.to(device)
        gw, gs, gz = kernel.latent_step(grad, weight, scale, zero, 7)
        assert torch.equal(gw, reference.latent_step(grad, weight, scale, zero, 7)[0])
        exact = reference.latent_step(grad.double(), weight.double(), scale.double(), zero.double(), 7)
        for mine, true in zip((gs, gz), exact[1:], strict=True):
            assert mine.dtype == torch.float32
            # Terms of up to 16, summed in float32; u = w / s is rounded as well.
            torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5 * math.sqrt(features / groups))


def test_operator_is_known_to_torch(device: str) -> None:
    grad, weight, scale, zero = (t.to(device) for t in case(2, 3, dtype=torch.float32))
    operator: Callable[..., Any] = torch.ops.rqat.latent_step
    torch.library.opcheck(operator, (grad, weight, scale, zero, 3), test_utils=("test_schema", "test_faketensor"))
