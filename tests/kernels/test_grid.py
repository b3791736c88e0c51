"""The uniform grid: what quantize, dequantize and the two fits promise."""

from __future__ import annotations

import pytest
import torch

from rqat import Scheme
from rqat_kernels.dispatch import has_triton
from rqat_kernels.grid import dequantize, fit_clip, fit_minmax, quantize, reference, requantize, snap_scale

SCHEMES = [
    f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g64", "g128", "-row") for sym in ("", "-sym")
]


def weights(out: int = 24, features: int = 256, seed: int = 0) -> torch.Tensor:
    """Weights of mixed sizes: rows small and large, a few heavy tails, one group of zeros, one of positives only."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator) * torch.logspace(-4, 2, out)[:, None]
    weight[:, ::17] *= 5
    weight[0, :128] = 0
    weight[1] = weight[1].abs()
    weight[2] = -weight[2].abs()
    return weight


@pytest.mark.parametrize("spelling", SCHEMES)
@pytest.mark.parametrize("fit", [fit_minmax, fit_clip])
def test_weights_on_the_grid_stay_where_they_are(spelling: str, fit) -> None:
    scheme, weight = Scheme.parse(spelling), weights()
    scale, zero = fit(weight, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric)
    codes = quantize(weight, scale, zero, scheme.max_code)
    w_hat = dequantize(codes, scale, zero)
    assert codes.dtype == torch.uint8
    assert codes.max() <= scheme.max_code
    assert torch.equal(quantize(w_hat, scale, zero, scheme.max_code), codes)


@pytest.mark.parametrize("spelling", SCHEMES)
def test_fitted_grids_keep_their_promises(spelling: str) -> None:
    scheme, weight = Scheme.parse(spelling), weights()
    for fit in (fit_minmax, fit_clip):
        scale, zero = fit(weight, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric)
        assert scale.shape == zero.shape == (24, scheme.groups(256))
        assert torch.equal(scale, scale.to(torch.float16).float())
        assert torch.equal(scale, scale.to(torch.bfloat16).float())
        assert (scale > 0).all()
        assert torch.equal(zero, zero.round())
        assert ((zero >= 0) & (zero <= scheme.max_code)).all()
        if scheme.symmetric:
            assert (zero == scheme.middle).all()


def test_a_cpu_rounds_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces end between rows, the last is shorter, and rows of groups are cut like whole ones: nothing changes."""
    weight = weights(out=7)
    scale, zero = fit_minmax(weight, 2, 15, symmetric=False)
    codes = quantize(weight, scale, zero, 15)
    values = dequantize(codes, scale, zero, torch.bfloat16)
    monkeypatch.setattr(reference, "AT_ONCE", 3 * 256)
    assert len(reference.pieces(weight)) == 3
    for one, other in zip(fit_minmax(weight, 2, 15, symmetric=False), (scale, zero), strict=True):
        assert torch.equal(one, other)
    rows = (weight.view(14, 128), scale.view(14, 1), zero.view(14, 1))
    assert torch.equal(quantize(*rows, 15), codes.view(14, 128))
    assert torch.equal(dequantize(codes, scale, zero, torch.bfloat16), values)
    assert torch.equal(quantize(torch.nn.Parameter(weight), scale, zero, 15), codes)


@pytest.mark.parametrize("spelling", SCHEMES)
def test_rounding_error_is_at_most_half_a_step_inside_the_span(spelling: str) -> None:
    scheme, weight = Scheme.parse(spelling), weights()
    scale, zero = fit_minmax(weight, scheme.groups(256), scheme.max_code, symmetric=scheme.symmetric)
    w_hat = dequantize(quantize(weight, scale, zero, scheme.max_code), scale, zero)
    grouped, error = weight.view(24, scale.shape[1], -1), (w_hat - weight).view(24, scale.shape[1], -1).abs()
    inside = (grouped <= (scheme.max_code - zero)[..., None] * scale[..., None]) & (
        grouped >= (-zero * scale)[..., None]
    )
    step = scale[..., None].expand_as(error)
    assert (error <= 0.5001 * step)[inside].all()
    # Snapping keeps 8 bits of the scale and the zero point is rounded: the ends may lie just over half a step away,
    # and a symmetric grid reaches one step less far on its upper side.
    assert (error <= (1.01 + 2**-8 * scheme.max_code) * step).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_clip_search_is_never_worse_than_the_whole_span(bits: int, groups: int, symmetric: bool) -> None:
    weight, max_code = weights(), 2**bits - 1
    importance = torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 4

    def costs(grid: tuple[torch.Tensor, torch.Tensor], weighting: torch.Tensor) -> torch.Tensor:
        error = dequantize(quantize(weight, *grid, max_code), *grid) - weight
        return (error.square() * weighting).view(24, groups, -1).sum(-1)

    whole = fit_minmax(weight, groups, max_code, symmetric=symmetric)
    for given, weighting in ((None, torch.ones(256)), (importance, importance)):
        narrowed = fit_clip(weight, groups, max_code, symmetric=symmetric, importance=given)
        # As close as two float32 sums of the same terms come.
        assert (costs(narrowed, weighting) <= costs(whole, weighting) * (1 + 1e-5)).all()
    if bits == 2:
        narrowed = fit_clip(weight, groups, max_code, symmetric=symmetric)
        assert costs(narrowed, torch.ones(256)).sum() < 0.9 * costs(whole, torch.ones(256)).sum()


def test_ties_go_to_the_even_code() -> None:
    weight = torch.tensor([[-1.5, -0.5, 0.5, 1.5, 2.5, 0.0, 9.0, -9.0]])
    codes = quantize(weight, torch.ones(1, 1), torch.full((1, 1), 4.0), 7)
    assert codes.tolist() == [[2, 4, 4, 6, 6, 4, 7, 0]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("fit", [fit_minmax, fit_clip])
def test_a_group_of_zeros_gets_scale_one_and_stays_zero(fit, symmetric: bool) -> None:
    weight = torch.zeros(3, 64)
    scale, zero = fit(weight, 2, 3, symmetric=symmetric)
    assert (scale == 1).all()
    assert (dequantize(quantize(weight, scale, zero, 3), scale, zero) == 0).all()


def test_zero_is_always_a_point_of_the_grid() -> None:
    weight = weights()
    scale, zero = fit_minmax(weight + 5.0, 2, 3, symmetric=False)
    w_hat = dequantize(quantize(torch.zeros_like(weight), scale, zero, 3), scale, zero)
    assert (w_hat == 0).all()


def test_snapped_scales_are_exact_in_both_16_bit_formats() -> None:
    scale = torch.logspace(-12, 8, 4001)
    snapped = snap_scale(scale)
    assert torch.equal(snapped, snapped.half().float())
    assert torch.equal(snapped, snapped.bfloat16().float())
    assert torch.equal(snapped, snap_scale(snapped))
    kept = (scale > 2.0**-17) & (scale < 65280)
    assert ((snapped - scale).abs() <= scale * 2**-8)[kept].all()
    assert (snap_scale(torch.zeros(2)) > 0).all()


def test_dequantize_rounds_once() -> None:
    weight = weights()
    scale, zero = fit_minmax(weight, 2, 7, symmetric=False)
    codes = quantize(weight, scale, zero, 7)
    exact = (codes.view(24, 2, 128).double() - zero.double()[..., None]) * scale.double()[..., None]
    assert torch.equal(dequantize(codes, scale, zero).double(), exact.view(24, 256))
    assert torch.equal(dequantize(codes, scale, zero, torch.bfloat16), exact.view(24, 256).to(torch.bfloat16))


def on_borders(out: int, groups: int, group: int, max_code: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights on the borders between codes and one float beside them, beyond the grid's ends, and huge ones."""
    g = torch.Generator().manual_seed(seed)
    scale = snap_scale(torch.exp(3 * torch.randn(out, groups, generator=g)))
    zero = torch.randint(0, max_code + 1, (out, groups), generator=g).float()
    halves = torch.randint(-3, 2 * max_code + 4, (out, groups, group), generator=g) / 2
    weight = (halves - zero[..., None]) * scale[..., None]
    aside = torch.randint(-1, 2, weight.shape, generator=g)
    weight = torch.where(aside == 0, weight, torch.nextafter(weight, aside * torch.inf))
    weight[0, 0, :: max(2, group // 3)] *= 1e9
    return weight.view(out, -1), scale, zero


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_kernels_equal_the_reference_to_the_bit(bits: int, device: str) -> None:
    from rqat_kernels.grid import kernel

    shapes = [(6, 3, 16), (20, 2, 128), (2, 1, 3000), (1, 7, 1), (17, 1, 160)]
    dtypes = [torch.float32, torch.float16]
    if device == "cuda":
        shapes += [(2048, 8, 128), (300, 1, 12288), (1001, 3, 1000)]
        dtypes.append(torch.bfloat16)
    for number, shape in enumerate(shapes):
        exact, *grid = (t.to(device) for t in on_borders(*shape, 2**bits - 1, number))
        for dtype in dtypes:
            weight = exact.to(dtype).nan_to_num()  # the huge ones do not fit float16
            codes = kernel.quantize(weight, *grid, 2**bits - 1)
            assert torch.equal(codes, reference.quantize(weight, *grid, 2**bits - 1))
            transposed = weight.T.contiguous().T
            assert torch.equal(kernel.quantize(transposed, *grid, 2**bits - 1), codes)
            for out in dtypes:
                values = reference.dequantize(codes, *grid, out)
                assert torch.equal(kernel.dequantize(codes, *grid, out), values)
                assert torch.equal(kernel.requantize(weight, *grid, 2**bits - 1, out), values)


def test_the_quotient_by_the_reciprocal_is_the_rounded_one() -> None:
    """The kernels' three instructions per division, in float64 (which holds every product), as a GPU rounds them."""
    g = torch.Generator().manual_seed(0)
    s = snap_scale(torch.exp(4 * torch.randn(1 << 20, generator=g)))
    w = torch.randn(1 << 20, generator=g) * s * torch.randint(1, 300, (1 << 20,), generator=g)
    for weight in (w, torch.round(2 * w / s) / 2 * s, torch.nextafter(torch.round(2 * w / s) / 2 * s, w)):
        y = (1 / s).double()
        a = (weight * y.float()).double()
        rest = (weight.double() - a * s.double()).float().double()
        normal = weight.abs() > 1e-30  # below, quotients may vanish that torch keeps; their codes are the same
        assert torch.equal((a + rest * y).float()[normal], (weight / s)[normal])


def test_requantize_is_dequantize_of_quantize(device: str) -> None:
    weight = weights().to(device)
    grid = fit_minmax(weight, 2, 7, symmetric=False)
    values = dequantize(quantize(weight, *grid, 7), *grid, torch.bfloat16)
    assert torch.equal(requantize(weight, *grid, 7, torch.bfloat16), values)


@pytest.mark.parametrize("name", ["quantize", "dequantize", "requantize"])
def test_operators_are_known_to_torch(name: str, device: str) -> None:
    weight = weights().to(device)
    grid = fit_minmax(weight, 2, 7, symmetric=False)
    arguments = {
        "quantize": (weight, *grid, 7),
        "dequantize": (quantize(weight, *grid, 7), *grid, torch.float16),
        "requantize": (weight, *grid, 7, torch.bfloat16),
    }[name]
    torch.library.opcheck(getattr(torch.ops.rqat, name), arguments, test_utils=("test_schema", "test_faketensor"))


def grid_costs(
    weight: torch.Tensor, grid: tuple[torch.Tensor, ...], max_code: int, costs: torch.Tensor
) -> torch.Tensor:
    """What each group's rounding error costs `(O, G)`, in float64."""
    out, groups = grid[0].shape
    scale, zero = (t.double()[..., None] for t in grid)
    grouped = weight.double().view(out, groups, -1)
    codes = (torch.round(grouped / scale) + zero).clamp(0, max_code)
    return (((codes - zero) * scale - grouped).square() * costs.double().view(groups, -1)).sum(-1)


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_clip_kernel_chooses_as_the_reference(bits: int, symmetric: bool, device: str) -> None:
    from rqat_kernels.grid import clip

    shapes = [(24, 2, 128), (5, 3, 48), (3, 1, 300)]
    dtypes = [torch.float32, torch.float16]
    if device == "cuda":
        shapes += [(2048, 8, 128), (300, 1, 8192), (1001, 3, 1000)]
        dtypes.append(torch.bfloat16)
    same = total = 0
    for number, (out, groups, group) in enumerate(shapes):
        exact = weights(out, groups * group, seed=number).to(device)
        costs = torch.rand(groups * group, generator=torch.Generator().manual_seed(number)).to(device) ** 4
        for dtype in dtypes:
            weight = exact.to(dtype)
            for given in (None, costs):
                for how in ({}, {"shrinks": 7, "narrowest": 0.8}):
                    arguments = {"symmetric": symmetric, "importance": given, **how}
                    got = clip.fit_clip(weight, groups, 2**bits - 1, **arguments)
                    want = reference.fit_clip(weight, groups, 2**bits - 1, **arguments)
                    equal = (got[0] == want[0]) & (got[1] == want[1])
                    same, total = same + int(equal.sum()), total + equal.numel()
                    weighting = torch.ones_like(costs) if given is None else costs
                    ours, theirs = (grid_costs(weight, grid, 2**bits - 1, weighting) for grid in (got, want))
                    # Costs are float32 sums in another order: of two grids as good as equal either may win.
                    assert (ours <= theirs * (1 + 1e-6)).all()
    assert same >= 0.999 * total, f"{total - same} of {total} grids differ"


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
def test_the_clip_kernel_takes_any_layout_and_few_tries(device: str) -> None:
    from rqat_kernels.grid import clip

    weight = weights().to(device)
    assert not clip.takes(weight, 2, torch.ones(2, 128, 128, device=device))
    assert not clip.takes(weight.double(), 2, None)
    for shrinks in (0, 1):
        got = clip.fit_clip(weight.T.contiguous().T, 2, 3, symmetric=False, shrinks=shrinks)
        assert all(torch.equal(a, b) for a, b in zip(got, fit_minmax(weight, 2, 3, symmetric=False), strict=True))
    assert clip.fit_clip(weight[:0], 2, 3, symmetric=False)[0].shape == (0, 2)


@pytest.mark.parametrize("importance", [None, torch.rand(256) + 0.1])
def test_the_clip_search_is_known_to_torch(importance: torch.Tensor | None) -> None:
    arguments = (weights(), 2, 3, False, importance, 5, 0.4)
    torch.library.opcheck(torch.ops.rqat.fit_clip, arguments, test_utils=("test_schema", "test_faketensor"))
    got = torch.ops.rqat.fit_clip(*arguments)
    want = fit_clip(weights(), 2, 3, symmetric=False, importance=importance, shrinks=5)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
