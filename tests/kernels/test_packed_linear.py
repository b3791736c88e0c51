"""Linear layers on packed weights: the operator, its gradients, and the layer for models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rqat_kernels.packed_linear import PackedLinear, packed_linear
from rqat_kernels.packed_linear.reference import packed_linear as reference
from rqat_kernels.packing import PackedWeight, dequantize_reference


def draw(out: int, width: int, group: int, bits: int, seed: int = 0, device: str = "cpu") -> PackedWeight:
    """A random packed weight."""
    source = torch.Generator().manual_seed(seed)
    groups = -(-width // group)
    codes = torch.randint(0, 2**bits, (out, width), generator=source).to(torch.uint8)
    scale = (torch.rand((out, groups), generator=source) * 0.1 + 0.01).to(torch.bfloat16).float()
    zero = torch.randint(0, 2**bits, (out, groups), generator=source).to(torch.uint8)
    return PackedWeight.from_codes(codes, scale, zero, bits, group).to(device)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def exact(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The definition in float64."""
    return reference(x.double(), weight, None if bias is None else bias.double())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), [(5, 640, 128), (33, 77, 77), (16, 96, 32), (7, 256, 64)])
def test_equals_the_dense_layer(out: int, width: int, group: int, bits: int) -> None:
    weight = draw(out, width, group, bits)
    x, bias = torch.randn(2, 3, width), torch.randn(out)
    found = packed_linear(x, weight, bias)
    assert found.shape == (2, 3, out)
    # Another order of float32 sums than the definition's in float64.
    assert relative(found, exact(x, weight, bias)) < 1e-6
    assert packed_linear(x[:0], weight).shape == (0, 3, out)


def test_gradients() -> None:
    weight = draw(5, 256, 128, 3)
    x = torch.randn(4, 256, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: packed_linear(x, weight, bias), (x, bias))


def test_operator_is_registered_in_full() -> None:
    weight = draw(5, 256, 128, 3)
    arguments = (weight.words, weight.extra, weight.params, 5, 256, 3, 128)
    x = torch.randn(4, 256, requires_grad=True)
    torch.library.opcheck(torch.ops.rqat.packed_linear.default, (x, *arguments, torch.randn(5)))
    torch.library.opcheck(torch.ops.rqat.dequantize_packed.default, (*arguments, torch.float32))


def test_width_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="x has 128 features"):
        packed_linear(torch.randn(2, 128), draw(5, 256, 128, 2))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_layer(bits: int) -> None:
    weight = draw(32, 256, 128, bits)
    linear = nn.Linear(256, 32)
    with torch.no_grad():
        linear.weight.copy_(dequantize_reference(weight, torch.float32))
    layer = PackedLinear.from_linear(linear, weight.scale, weight.zero, bits)
    assert torch.equal(layer.weight.codes(), weight.codes())
    x = torch.randn(3, 256)
    assert relative(layer(x), linear(x)) < 1e-6
    # Casting a model changes the type of x, never the packed arrays.
    layer = layer.to(torch.bfloat16)
    assert torch.equal(layer.weight.scale, weight.scale)
    few, many = x.bfloat16(), torch.randn(9, 256).bfloat16()
    # bfloat16 has 8 bits; torch's int4 product rounds zero point times scale to bfloat16 as well.
    assert relative(layer(few), exact(few, weight, layer.bias)) < 2e-2
    assert relative(layer(many), exact(many, weight, layer.bias)) < 5e-3


def test_layer_travels_in_a_state_dict() -> None:
    source, target = PackedLinear(draw(32, 256, 128, 3, seed=1)), PackedLinear(draw(32, 256, 128, 3, seed=2))
    x = torch.randn(2, 256)
    target(x)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))
