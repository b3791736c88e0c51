"""fake_quant: values on the grid, straight-through gradients, for weights, activations and the module."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rqat_kernels.dispatch import has_triton
from rqat_kernels.fake_quant import fake_quant, fake_quant_activations, reference
from rqat_kernels.fake_quant.module import FakeQuantLinear
from rqat_kernels.grid import dequantize, snap_scale

OUT, IN = 6, 48


def case(bits: int, groups: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Gradient, weight, scale, zero point; weights beyond both ends, zero points between codes and some outside."""
    g = torch.Generator().manual_seed(seed)
    q = 2**bits - 1
    grad = torch.randn(OUT, IN, generator=g, dtype=torch.float64)
    scale = snap_scale(torch.rand(OUT, groups, generator=g) + 0.1).double()
    zero = torch.rand(OUT, groups, generator=g, dtype=torch.float64) * (q + 2) - 1
    codes = torch.rand(OUT, groups, IN // groups, generator=g, dtype=torch.float64) * (2 * q + 2) - q / 2 - 1
    weight = ((codes - zero[..., None]) * scale[..., None]).view(OUT, IN)
    return tuple(t.to(dtype) for t in (grad, weight, scale, zero))


def smooth(weight: Tensor, scale: Tensor, zero: Tensor, q: int, at: tuple[Tensor, Tensor]) -> Tensor:
    """Fake quantization with the distances to the rounded numbers held at `at`: that is what is differentiated."""
    off_u, off_z = at
    z = (zero + off_z).clamp(0, q)[..., None]
    codes = (weight.view(*scale.shape, -1) / scale[..., None] + off_u + z).clamp(0, q)
    return ((codes - z) * scale[..., None]).view(weight.shape)


def distances(weight: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    u = weight.view(*scale.shape, -1) / scale[..., None]
    return u.round() - u, zero.round() - zero


@pytest.mark.parametrize("lsq", [False, True])
@pytest.mark.parametrize(("bits", "groups"), [(2, 3), (4, 1)])
def test_gradients_are_those_of_the_smooth_form_which_gradcheck_confirms(bits: int, groups: int, lsq: bool) -> None:
    grad, *leaves = case(bits, groups)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    q = 2**bits - 1
    at = distances(*(leaf.detach() for leaf in leaves))
    # Whole codes lie on the clamp's corners, where no derivative exists; a shift puts them beside.
    shifted = (at[0] + 0.25, at[1] + 0.1)
    assert torch.autograd.gradcheck(lambda w, s, z: smooth(w, s, z, q, shifted), leaves)
    assert torch.equal(fake_quant(*leaves, q), smooth(*leaves, q, at).detach()) or torch.allclose(
        fake_quant(*leaves, q), smooth(*leaves, q, at), rtol=1e-13, atol=1e-13
    )
    mine = torch.autograd.grad(fake_quant(*leaves, q, lsq=lsq), leaves, grad)
    by_reference = reference.fake_quant_backward(grad, *(leaf.detach() for leaf in leaves), q, lsq=lsq)
    for one, other in zip(mine, by_reference, strict=True):
        assert torch.equal(one, other)
    factor = 1 / math.sqrt(IN // groups * q) if lsq else 1.0
    exact = torch.autograd.grad(smooth(*leaves, q, at), leaves, grad)
    # Numbers on a corner of the clamp count as inside, to one side or to the other by the last bit of their sum.
    codes = (leaves[0].view(OUT, groups, -1) / leaves[1][..., None]).round() + reference.whole_zero(leaves[2], q)[
        ..., None
    ]
    clear = ((codes != 0) & (codes != q)).all(-1)
    assert ((mine[0] == 0) == ((codes < 0) | (codes > q)).view(OUT, IN)).all()
    for one, other in zip(mine[1:], exact[1:], strict=True):
        torch.testing.assert_close(one[clear], other[clear] * factor, rtol=1e-12, atol=1e-12)


def test_a_zero_point_outside_the_codes_gets_no_gradient() -> None:
    grad, weight, scale, zero = case(2, 3)
    zero = torch.where(torch.arange(3) == 1, zero + 10, zero.clamp(0, 3)).requires_grad_()
    fake_quant(weight, scale, zero, 3).backward(grad)
    assert not zero.grad[:, 1].any()
    assert zero.grad[:, 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_gradients_follow_the_reference_in_every_dtype(dtype: torch.dtype, device: str) -> None:
    grad, weight, scale, zero = (t.to(device) for t in case(3, 3, dtype=torch.float32))
    grad, weight = grad.to(dtype), weight.to(dtype).requires_grad_()
    scale, zero = scale.requires_grad_(), zero.requires_grad_()
    w_hat = fake_quant(weight, scale, zero, 7)
    assert w_hat.dtype == dtype
    assert torch.equal(w_hat, reference.fake_quant(weight.detach(), scale.detach(), zero.detach(), 7))
    w_hat.backward(grad)
    exact = reference.fake_quant_backward(*(t.detach().double() for t in (grad, weight, scale, zero)), 7)
    for leaf, true in zip((weight, scale, zero), exact, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        torch.testing.assert_close(leaf.grad.double(), true, rtol=1e-5, atol=1e-4)  # float32 sums of 16 terms


SHAPES = [((5, 48), None), ((3, 7, 256), 128), ((2, 96), 32), ((9, 1000), None), ((1, 6), 1)]


def activations(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))
    x.view(-1, shape[-1])[0] = 0
    x.view(-1, shape[-1])[-1].abs_()
    return x.to(device, dtype)


@pytest.mark.skipif(not has_triton(), reason="the kernel is written in Triton; the dev extra has it")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_activation_kernel(bits: int, symmetric: bool, device: str) -> None:
    from rqat_kernels.fake_quant import kernel

    dtypes = [torch.float32, torch.float16] + ([torch.bfloat16] if device == "cuda" else [])
    shapes = SHAPES + ([((300, 4096), None), ((64, 12288), 128)] if device == "cuda" else [])
    for shape, group in shapes:
        for dtype in dtypes:
            x = activations(shape, device, dtype)
            mine = kernel.fake_quant_activations(x, bits, group, symmetric=symmetric)
            exact = reference.fake_quant_activations(x, bits, group, symmetric=symmetric)
            # The same float32 arithmetic; one quotient in millions may fall on the other side of a tie.
            assert (mine == exact).float().mean() > 1 - 1e-6
            transposed = x.transpose(-1, 0).contiguous().transpose(-1, 0)
            assert torch.equal(kernel.fake_quant_activations(transposed, bits, group, symmetric=symmetric), mine)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("shape", "group"), SHAPES)
def test_activations_stay_within_half_a_step_and_pass_their_gradient_on(
    shape: tuple[int, ...], group: int | None, symmetric: bool, device: str
) -> None:
    x = activations(shape, device, torch.float32).requires_grad_()
    x_hat = fake_quant_activations(x, 8, group, symmetric=symmetric)
    rows = x.detach().view(-1, group or shape[-1])
    span = (
        2 * rows.abs().amax(-1) / 254 if symmetric else (rows.amax(-1).clamp(min=0) - rows.amin(-1).clamp(max=0)) / 255
    )
    error = (x_hat.detach() - x.detach()).view_as(rows).abs().amax(-1)
    # Asymmetric: the rounded zero point may push an end half a step out of the codes.
    assert (error <= (0.501 if symmetric else 1.001) * span + 1e-12).all()
    grad = torch.randn_like(x_hat)
    x_hat.backward(grad)
    assert torch.equal(x.grad, grad)


def test_activations_in_float64_are_the_formula() -> None:
    x = activations((4, 64), "cpu", torch.float64)
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = torch.where(high > low, (high - low) / 15, 1.0)
    zero = (-low / scale).round()
    exact = (((x / scale).round() + zero).clamp(0, 15) - zero) * scale
    assert torch.equal(fake_quant_activations(x, 4), exact)


def test_wrong_groups_and_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 10 do not divide 48"):
        fake_quant_activations(torch.zeros(2, 48), 4, 10)
    with pytest.raises(ValueError, match="bits must be 2 to 8, not 1"):
        fake_quant_activations(torch.zeros(2, 48), 1)
    with pytest.raises(ValueError, match="groups of 128 do not divide 48"):
        FakeQuantLinear(nn.Linear(48, 6), 4)


def test_operators_are_known_to_torch(device: str) -> None:
    _, weight, scale, zero = (t.to(device) for t in case(3, 3, dtype=torch.float32))
    leaves = [t.requires_grad_() for t in (weight, scale, zero)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.rqat.fake_quant, (*leaves, 7, False), test_utils=tests)
    torch.library.opcheck(torch.ops.rqat.fake_quant_activations, (weight, 4, None, False), test_utils=tests)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_module_trains_what_it_exports(symmetric: bool, device: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(device)
    other = torch.randn_like(linear.weight) / 8
    module = FakeQuantLinear(linear, 3, 32, symmetric=symmetric, activation_bits=8)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        x = torch.randn(64, 64, device=device)
        loss = (module(x) - nn.functional.linear(x, other)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    codes, scale, zero = module.quantized()
    w_hat = fake_quant(module.weight, module.snapped_scale(), module.zero, 7)
    torch.testing.assert_close(w_hat, dequantize(codes, scale, zero), rtol=1e-6, atol=0)
    assert module.zero.requires_grad != symmetric
