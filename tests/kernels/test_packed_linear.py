"""Linear layers on packed weights: the operator, its gradients, and the layer for models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rqat_kernels.decode import silu_mul
from rqat_kernels.packed_linear import PackedLinear, packed_linear, packed_swiglu
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
    # bfloat16 has 8 bits: the output is rounded, and of many rows the dense weight too.
    assert relative(layer(few), exact(few, weight, layer.bias)) < 4e-3
    assert relative(layer(many), exact(many, weight, layer.bias)) < 5e-3


FEW = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
"""As kernels for GPUs: sums in float32, and one rounding of the output."""


@pytest.mark.parametrize("dtype", FEW)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), [(32, 256, 128), (48, 192, 64), (20, 96, 96), (64, 80, 16)])
@pytest.mark.parametrize("least", [0, 1, None])
def test_few_rows_on_a_cpu(out: int, width: int, group: int, bits: int, dtype: torch.dtype, least: int | None) -> None:
    """Zero points from 0 on, or from 1 on as version 1 of GPTQ has them, or all in the middle."""
    weight = draw(out, width, group, bits)
    zero = weight.zero + least if least is not None else torch.full_like(weight.zero, 2 ** (bits - 1))
    layer = PackedLinear.from_codes(weight.codes(), weight.scale, zero, bits, torch.randn(out), group).to(dtype)
    for rows in (1, 4):
        x = torch.randn(rows, 1, width).to(dtype)
        assert relative(layer(x), exact(x, layer.weight, layer.bias)) < FEW[dtype]
        assert rows > 1 or not layer._dense
    assert layer(x[:0]).shape == (0, 1, out)


def test_what_cannot_be_read_packed_on_a_cpu_is_dense() -> None:
    """Real zero points, groups that do not divide, an odd number of outputs; and where a gradient is asked for."""
    weight = draw(32, 256, 128, 4)
    real = PackedLinear.from_codes(weight.codes(), weight.scale, weight.zero + 0.5, 4)
    odd = PackedLinear(draw(33, 256, 128, 4))
    apart = PackedLinear.from_codes(weight.codes(), weight.scale, weight.zero, 4, group=130)
    for layer in (real, odd, apart):
        x = torch.randn(1, 256)
        assert relative(layer(x), exact(x, layer.weight)) < 2e-6
        assert torch.float32 in layer._dense
    layer, x = PackedLinear(weight), torch.randn(1, 256, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert relative(x.grad[0], dequantize_reference(weight, torch.float64).sum(0)) < 1e-6


def test_layer_travels_in_a_state_dict() -> None:
    source, target = PackedLinear(draw(32, 256, 128, 3, seed=1)), PackedLinear(draw(32, 256, 128, 3, seed=2))
    x = torch.randn(2, 256)
    target(x)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


CONFIGS = [
    (1, (16, 1, 1, 2)),
    (5, (32, 2, 4, 2)),
    (9, (32, 1, 2, 2, 2)),
    (16, (64, 1, 2, 3, 3)),
    (5, (32, 2, 4, 2, 1, False, "stream")),
    (3, (64, 1, 4, 2, 1, False, "wide")),
    (17, (64, 1, 4, 3, 3, False, "wide")),
    (33, (64, 1, 4, 2, 3, False, "wide")),
    (20, (64, 1, 4, 3, 2)),
    (3, (64, 1, 4, 3, 1, False, "tiled")),
    (33, (64, 2, 4, 2, 3, False, "tiled")),
    (20, (64, 4, 4, 2, 2, False, "tiled")),
    (130, (128, 1, 8, 2, 2, False, "tiled")),
]
"""Rows of x, and how the work is cut."""


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width", "group"), [(33, 640, 128), (20, 77, 77), (17, 1100, 1100), (48, 1536, 256)])
@pytest.mark.parametrize(("rows", "config"), CONFIGS)
def test_kernel(out: int, width: int, group: int, bits: int, rows: int, config: tuple, device: str) -> None:
    """Odd sizes, more warps and splits than slabs. By the interpreter this is the plain branch of the decoding."""
    kernel = pytest.importorskip("rqat_kernels.packed_linear.kernel")
    from rqat_kernels.packed_linear.choose import Config

    weight = draw(out, width, group, bits, seed=rows, device=device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x, bias = torch.randn(rows, width, device=device).to(dtype), torch.randn(out, device=device).to(dtype)
    found = kernel.packed_linear(x, weight, bias, Config(*config))
    # float32: the offset of 128 costs 7 of 24 bits. bfloat16: the output is rounded to 8 bits.
    assert relative(found, exact(x, weight, bias)) < (4e-3 if device == "cuda" else 2e-5)


@pytest.mark.parametrize(("out", "width", "group"), [(34, 640, 128), (48, 1536, 256)])
@pytest.mark.parametrize(("rows", "config"), CONFIGS)
def test_kernel_of_gates(out: int, width: int, group: int, rows: int, config: tuple, device: str) -> None:
    """Halves of a block that begin between blocks, and a last block that is not full."""
    kernel = pytest.importorskip("rqat_kernels.packed_linear.kernel")
    from rqat_kernels.packed_linear.choose import Config

    weight = draw(out, width, group, 2, seed=rows, device=device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x, bias = torch.randn(rows, width, device=device).to(dtype), torch.randn(out, device=device).to(dtype)
    found = kernel.packed_linear(x, weight, bias, Config(*config), gated=True)
    gate, up = exact(x, weight, bias).chunk(2, dim=-1)
    # Gates and what they are multiplied with are rounded to 8 bits on a GPU, and so is the product.
    assert relative(found, nn.functional.silu(gate) * up) < (8e-3 if device == "cuda" else 4e-5)


def test_gates_by_way_of_a_dense_copy() -> None:
    weight, x = draw(24, 128, 128, 3), torch.randn(2, 5, 128)
    gate, up = exact(x, weight).chunk(2, dim=-1)
    for found in (packed_swiglu(x, weight), PackedLinear(weight).swiglu(x)):
        assert found.shape == (2, 5, 12)
        assert relative(found, nn.functional.silu(gate) * up) < 1e-5
    with pytest.raises(ValueError, match="7 outputs"):
        packed_swiglu(x, draw(7, 128, 128, 3))
    with pytest.raises(ValueError, match="x has 64 features"):
        packed_swiglu(x[..., :64], weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_kernel_reads_other_scales(dtype: torch.dtype, device: str) -> None:
    """Scales that only float16 or float32 hold, and zero points between codes."""
    kernel = pytest.importorskip("rqat_kernels.packed_linear.kernel")
    from rqat_kernels.packed_linear.choose import Config

    codes = torch.randint(0, 8, (20, 256)).to(torch.uint8)
    scale = (torch.rand(20, 2) + 0.1).to(dtype).float()
    weight = PackedWeight.from_codes(codes, scale, (torch.rand(20, 2) * 7).to(dtype), 3).to(device)
    assert weight.params.dtype == dtype
    x = torch.randn(2, 256, device=device).half()
    found = kernel.packed_linear(x, weight, None, Config(16, 1, 1, 2))
    # The output is rounded to float16, and the offset of 1024 costs 10 of float32's 24 bits.
    assert relative(found, exact(x, weight)) < 1e-3
    dense = pytest.importorskip("rqat_kernels.packing.kernel").dequantize(weight, torch.float32)
    assert torch.equal(dense, dequantize_reference(weight, torch.float32))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width"), [(4096, 1024), (2560, 9728), (6144, 2560), (1000, 4096)])
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 33, 64, 100])
def test_operator_on_a_gpu(rows: int, out: int, width: int, bits: int, dtype: torch.dtype) -> None:
    weight = draw(out, width, 128, bits, device="cuda")
    x = torch.randn(rows, width, device="cuda", dtype=dtype)
    found = packed_linear(x, weight)
    # Rounding of the output (8 bits of bfloat16); above 64 rows, of the dense weight too.
    assert relative(found, exact(x, weight)) < (5e-3 if dtype == torch.bfloat16 else 1e-3)
    assert torch.equal(found, packed_linear(x, weight)), "not the same from run to run"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("out", "width"), [(6144, 1024), (24576, 4096), (1000, 4096)])
@pytest.mark.parametrize("rows", [1, 8, 16, 33, 64, 100])
def test_gates_on_a_gpu(rows: int, out: int, width: int, bits: int) -> None:
    """The same as gating what `packed_linear` gives: its sums and roundings, bit by bit."""
    weight = draw(out, width, 128, bits, device="cuda")
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(packed_swiglu(x, weight), silu_mul(packed_linear(x, weight)))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "config",
    [(16, 8, 8, 2), (32, 4, 8, 2, 1, True), (64, 2, 4, 2, 4), (64, 1, 4, 4, 1, True), (128, 1, 8, 3, 2), (32, 2, 4, 3)],
)
@pytest.mark.parametrize("rows", [1, 8, 16])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_configurations_on_a_gpu(bits: int, rows: int, config: tuple) -> None:
    from rqat_kernels.packed_linear import kernel
    from rqat_kernels.packed_linear.choose import SHARED_BYTES, Config, shared_bytes

    cut = Config(*config)
    if shared_bytes(cut, rows, bits) > SHARED_BYTES:
        pytest.skip(reason="does not fit")
    if cut.pdl and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip(reason="launches do not overlap here")
    weight = draw(4096, 4096, 128, bits, device="cuda")
    x = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
    # Rounding of the output to 8 bits.
    assert relative(kernel.packed_linear(x, weight, None, cut), exact(x, weight)) < 4e-3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_overlapping_launches_wait_for_their_input() -> None:
    """Each layer of a chain reads what the one before wrote, in a graph, many times."""
    from rqat_kernels.packed_linear import kernel
    from rqat_kernels.packed_linear.choose import Config

    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip(reason="launches do not overlap here")
    layers = [draw(2048, 2048, 128, 2, seed=seed, device="cuda") for seed in range(16)]
    x = torch.randn(1, 2048, device="cuda", dtype=torch.bfloat16)

    def chain(pdl: bool) -> torch.Tensor:
        y = x
        for weight in layers:
            y = kernel.packed_linear(y * 0.05, weight, None, Config(16, 4, 4, 2, 1, pdl))
            y = kernel.packed_linear(y, weight, None, Config(32, 2, 4, 2, 1, pdl)) * 0.05
        return y

    expected = chain(pdl=False)
    chain(pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(pdl=True)
    for _ in range(20):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("rows", "cut"),
    [
        (1, (64, 2, 4, 3, 4, False, "skinny")),
        (8, (64, 2, 4, 3, 2, False, "stream")),
        (5, (16, 8, 8, 3, 1, False, "stream")),
        (16, (64, 1, 4, 3, 1, False, "stream")),
        (16, (64, 1, 4, 3, 8, True, "wide")),
        (16, (64, 2, 4, 2, 4, True, "skinny")),
        (32, (64, 1, 4, 3, 2, True, "skinny")),
        (32, (64, 1, 4, 1, 2, True, "wide")),
        (33, (64, 1, 4, 2, 3, False, "wide")),
        (64, (128, 1, 8, 2, 4, False, "wide")),
        (24, (64, 4, 4, 2, 2, True, "tiled")),
        (64, (64, 2, 4, 2, 3, True, "tiled")),
        (250, (256, 1, 16, 2, 2, True, "tiled")),
    ],
)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_variants_on_a_gpu(bits: int, rows: int, cut: tuple) -> None:
    """Many times over: sums of several programs are the same whoever ends last, and counters go back to zero."""
    from rqat_kernels.packed_linear import kernel
    from rqat_kernels.packed_linear.choose import Config

    if Config(*cut).pdl and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip(reason="launches do not overlap here")
    weight = draw(4096, 4096, 128, bits, device="cuda")
    x, bias = (torch.randn(*size, device="cuda", dtype=torch.bfloat16) for size in ((rows, 4096), (4096,)))
    found = [kernel.packed_linear(x, weight, bias, Config(*cut)) for _ in range(50)]
    assert relative(found[0], exact(x, weight, bias)) < 4e-3
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [1, 16, 100])
def test_layer_in_a_cuda_graph(rows: int) -> None:
    layer = PackedLinear(draw(4096, 1024, 128, 2)).to("cuda")
    x = torch.randn(rows, 1024, device="cuda", dtype=torch.bfloat16)
    expected = layer(x).clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
