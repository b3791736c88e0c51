"""gptq: less output error than rounding, the algorithm of the paper, and what happens to Hessians that are not nice."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rqat import Block, LinearStats, NumericsError, QuantizedWeight, Scheme, SharedInput
from rqat.testing import QuantizerSuite
from rqat_gptq import Options
from rqat_gptq.refit import FARTHEST, refit_scales
from rqat_gptq.solver import Gptq, _inverse_factor
from rqat_kernels.gptq_block import gptq_loop
from rqat_kernels.grid import dequantize, fit_clip, fit_minmax, quantize

LOSS_AGREES = 1e-4
"""A weight within float32's rounding of a tie may fall either way, and a few columns behind it follow."""

SCHEMES = [f"w{bits}g64{sym}" for bits in (2, 3, 4, 8) for sym in ("", "-sym")]


def problem(out: int = 64, features: int = 256, seed: int = 0, tokens: int = 1024) -> tuple[Tensor, Tensor]:
    """Weight and Hessian `X^T X / T` of strongly correlated inputs with a few channels much larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=generator) / features**0.5
    inputs = (torch.randn(tokens, features, generator=generator) * torch.arange(1, features + 1) ** -0.5) @ mixing
    inputs *= torch.randn(features, generator=generator).mul(0.7).exp()
    weight = torch.randn(out, features, generator=generator) * 0.03
    return weight, inputs.T @ inputs / tokens


def solve(weight: Tensor, hessian: Tensor | None, spelling: str, **options) -> QuantizedWeight:
    stats = LinearStats(tokens=1, hessian=hessian)
    return Gptq(Options(**options)).quantize_linear(weight, stats, Scheme.parse(spelling))


def rounded(weight: Tensor, spelling: str, clip: str, *, narrowest: float = 0.4) -> QuantizedWeight:
    scheme = Scheme.parse(spelling)
    fit = partial(fit_clip, narrowest=narrowest) if clip == "mse" else fit_minmax
    scale, zero = fit(weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric)
    return QuantizedWeight(quantize(weight, scale, zero, scheme.max_code), scale, zero.to(torch.uint8))


def loss(result: QuantizedWeight, weight: Tensor, hessian: Tensor) -> float:
    """`tr((w_hat - w) H (w_hat - w)^T)`, in float64."""
    error = dequantize(result.codes, result.scale, result.zero).double() - weight.double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize("spelling", [*SCHEMES, "w2-row", "w3g128", "w2g32"])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("narrowest", [0.8, 0.5])
def test_with_an_identity_hessian_it_rounds_to_nearest(
    spelling: str, clip: str, static: bool, narrowest: float
) -> None:
    weight, _ = problem()
    options = {"clip": clip, "narrowest": narrowest}
    result = solve(weight, torch.eye(256), spelling, **options, act_order=False, static_groups=static, refits=0)
    expected = rounded(weight, spelling, clip, narrowest=narrowest)
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.scale, expected.scale)
    assert torch.equal(result.zero, expected.zero)


@pytest.mark.parametrize("spelling", SCHEMES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"act_order": False, "static_groups": True}])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_less_output_error_than_rounding(spelling: str, seed: int, options: dict, clip: str) -> None:
    weight, hessian = problem(seed=seed)
    result = solve(weight, hessian, spelling, clip=clip, **options)
    assert result.note == ""
    assert result.codes.dtype == result.zero.dtype == torch.uint8
    best = min(loss(rounded(weight, spelling, c), weight, hessian) for c in ("minmax", "mse"))
    assert loss(result, weight, hessian) < (0.7 if clip == "mse" else 1.0) * best


@pytest.mark.parametrize("spelling", ["w2g64", "w3g64-sym", "w4g128", "w2-row"])
@pytest.mark.parametrize("options", [{"act_order": False}, {"act_order": True}])
def test_agrees_with_the_algorithm_in_float64(spelling: str, options: dict) -> None:
    weight, hessian = problem(out=128)
    scheme, clean = Scheme.parse(spelling), hessian.double()
    clean += 0.01 * clean.diagonal().mean() * torch.eye(256)
    order = hessian.diagonal().argsort(descending=True, stable=True) if options["act_order"] else torch.arange(256)
    # The inverse the long way round, so that the flipped factorization is checked too.
    factor = torch.linalg.cholesky(torch.linalg.inv(clean[order][:, order]), upper=True)
    static = solve(weight, hessian, spelling, damp=0.01, static_groups=True, narrowest=0.8, refits=0, **options)
    codes, scale, zero = gptq_loop(
        weight[:, order].double(), factor, static.scale, static.zero, scheme.max_code, order // scheme.group_size(256)
    )
    expected = QuantizedWeight(codes[:, order.argsort()], scale.float(), zero.float())
    assert (static.codes == expected.codes).float().mean() >= 0.99
    assert loss(static, weight, hessian) == pytest.approx(loss(expected, weight, hessian), rel=LOSS_AGREES)


def test_rounding_the_largest_inputs_first_helps_when_inputs_differ() -> None:
    weight, hessian = problem(out=128)
    ordered, plain = (loss(solve(weight, hessian, "w2g64", act_order=a), weight, hessian) for a in (True, False))
    assert ordered < plain


def test_group_size_of_a_whole_row() -> None:
    weight, hessian = problem()
    for act_order in (False, True):
        result = solve(weight, hessian, "w2-row", act_order=act_order)
        assert result.scale.shape == (64, 1)
        assert loss(result, weight, hessian) < loss(rounded(weight, "w2-row", "mse"), weight, hessian)


def test_the_width_of_a_block_changes_speed_only() -> None:
    weight, hessian = problem()
    wide, narrow = (solve(weight, hessian, "w2g64", block_columns=columns) for columns in (256, 16))
    assert (wide.codes == narrow.codes).float().mean() >= 0.99


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_inputs_get_zero_weights_and_widen_no_span(act_order: bool) -> None:
    weight, hessian = problem()
    hessian *= 1e-6  # a damping taken from the replaced diagonal entries would drown this
    dead = torch.zeros(256, dtype=torch.bool)
    dead[5:60:7] = True
    hessian[dead] = 0
    hessian[:, dead] = 0
    weight[:, dead] = 100.0
    result = solve(weight, hessian, "w2g64", act_order=act_order)
    w_hat = dequantize(result.codes, result.scale, result.zero)
    assert (w_hat[:, dead] == 0).all()
    clean = torch.where(dead, 0.0, weight)
    assert loss(result, clean, hessian) < 0.7 * loss(rounded(clean, "w2g64", "mse"), clean, hessian)


def test_rank_deficient_hessians_work_through_damping() -> None:
    weight, hessian = problem(tokens=40)
    result = solve(weight, hessian, "w2g64")
    assert result.note == ""
    assert loss(result, weight, hessian) < 0.5 * loss(rounded(weight, "w2g64", "mse"), weight, hessian)


def test_damping_is_raised_from_the_clean_diagonal_and_reported() -> None:
    weight, hessian = problem(tokens=40)
    hessian -= 0.02 * hessian.diagonal().mean() * torch.eye(256)  # not positive definite at 0.01
    result = solve(weight, hessian, "w2g64", damp=0.01)
    assert result.note == "damping raised from 0.01 to 0.1"
    again = solve(weight, hessian, "w2g64", damp=0.1)
    assert again.note == ""
    assert torch.equal(result.codes, again.codes)


def test_a_hopeless_hessian_means_rounding_and_says_so() -> None:
    weight, _ = problem()
    hessian = torch.full((256, 256), 1e6) + torch.eye(256)
    hessian[0, 1] = hessian[1, 0] = -1e12
    result = solve(weight, hessian, "w2g64", clip="mse")
    assert result.note.startswith("rounded to nearest")
    assert torch.equal(result.codes, rounded(weight, "w2g64", "mse").codes)


def test_an_input_never_seen_means_rounding_and_says_so() -> None:
    weight, _ = problem()
    result = solve(weight, torch.zeros(256, 256), "w3g64", clip="minmax")
    assert "never seen" in result.note
    assert torch.equal(result.codes, rounded(weight, "w3g64", "minmax").codes)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop(value: float) -> None:
    weight, hessian = problem()
    broken = hessian.clone()
    broken[3, 4] = value
    with pytest.raises(NumericsError, match="Hessian"):
        solve(weight, broken, "w2g64")
    broken = weight.clone()
    broken[0, 0] = value
    with pytest.raises(NumericsError, match="weight"):
        solve(broken, hessian, "w2g64")


def test_neither_weight_nor_hessian_is_changed() -> None:
    weight, hessian = problem()
    before = weight.clone(), hessian.clone()
    solve(weight, hessian, "w2g64")
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_the_factor_is_the_one_of_the_inverse_hessian() -> None:
    _, hessian = problem(features=700)  # larger than what is inverted in one piece
    factor, damp = _inverse_factor(hessian, torch.ones(700, dtype=torch.bool), 0.01)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(700)
    assert damp == 0.01
    assert factor is not None
    assert not factor.tril(-1).any()
    residual = factor.double().T @ factor.double() @ damped - torch.eye(700)
    assert residual.abs().max() < 1e-3


@pytest.mark.parametrize("spelling", ["w2g64", "w3g64-sym", "w2-row", "w2g32"])
def test_refitted_scales_solve_the_least_squares_of_the_output_error(spelling: str) -> None:
    weight, hessian = problem(out=12)
    scheme = Scheme.parse(spelling)
    start = solve(weight, hessian, spelling, refits=0)
    groups = start.scale.shape[1]
    damping = 0.01 * float(hessian.diagonal().mean())
    fitted, error = refit_scales(weight, start.codes, start.scale, start.zero.float(), hessian, damping)
    damped = hessian.double() + damping * torch.eye(256)
    root = torch.linalg.cholesky(damped)
    for row in range(12):
        values = start.codes[row].double() - start.zero[row].double().repeat_interleave(scheme.group_size(256))
        columns = torch.block_diag(*values.view(groups, 1, -1)).T  # (I, G): w_hat = columns @ scale
        best = torch.linalg.lstsq(root.T @ columns, (root.T @ weight[row].double())[:, None]).solution[:, 0]
        best = best.clamp(start.scale[row] / FARTHEST, start.scale[row] * FARTHEST)
        assert torch.allclose(fitted[row].double(), best, rtol=2**-8)  # half a step of what scales are snapped to
        residual = columns @ fitted[row].double() - weight[row]
        whole = float(weight[row].double() @ damped @ weight[row].double())
        assert float(error[row]) + whole == pytest.approx(float(residual @ damped @ residual), rel=1e-3)


def test_a_group_of_zeros_keeps_its_scale() -> None:
    weight, hessian = problem(out=8)
    weight[:, 64:128] = 0
    start = solve(weight, hessian, "w3g64", refits=0, act_order=False, static_groups=True)
    codes, zero = start.codes.clone(), start.zero.float()
    codes[:, 64:128] = zero[:, 1:2].byte()
    fitted, _ = refit_scales(weight, codes, start.scale, zero, hessian, 0.1)
    assert torch.equal(fitted[:, 1], start.scale[:, 1])
    assert torch.isfinite(fitted).all()


@pytest.mark.parametrize("spelling", ["w2g64", "w3g64", "w2g64-sym", "w2-row"])
@pytest.mark.parametrize("act_order", [True, "groups", False])
def test_every_refit_lowers_the_output_error(spelling: str, act_order: bool | str) -> None:
    weight, hessian = problem(out=128)
    losses = [
        loss(solve(weight, hessian, spelling, act_order=act_order, refits=refits), weight, hessian)
        for refits in range(4)
    ]
    assert losses[1] < losses[0]
    assert losses[3] < 0.97 * losses[0]


def test_scales_are_refitted_where_it_was_found_to_help() -> None:
    weight, hessian = problem(out=128)
    for bits, refits in ((2, 2), (3, 2), (4, 2), (8, 0)):
        spelling = f"w{bits}g64"
        assert solve(weight, hessian, spelling).equals(solve(weight, hessian, spelling, refits=refits)), spelling


def test_refits_leave_other_grids_as_they_are() -> None:
    weight, hessian = problem()
    assert solve(weight, hessian, "w2g64-seq", refits=2).equals(solve(weight, hessian, "w2g64-seq", refits=0))


def test_shrunk_to_its_diagonal_a_hessian_couples_nothing() -> None:
    weight, hessian = problem()
    result = solve(weight, hessian, "w2g64", shrink=1, refits=0, clip="minmax")
    assert torch.equal(result.codes, rounded(weight, "w2g64", "minmax").codes)


def test_whole_groups_in_turn_are_fitted_to_what_the_loop_has_made_of_them() -> None:
    weight, hessian = problem(out=128)
    turns = solve(weight, hessian, "w2g64", act_order="groups", refits=0)
    plain = solve(weight, hessian, "w2g64", act_order=False, refits=0)
    before = solve(weight, hessian, "w2g64", act_order="groups", static_groups=True, refits=0)
    assert loss(turns, weight, hessian) < min(loss(other, weight, hessian) for other in (plain, before))


def test_the_order_of_groups_keeps_each_together() -> None:
    _, hessian = problem()
    order = Gptq(Options(act_order="groups"))._order(hessian.diagonal(), Scheme.parse("w2g32"))
    assert torch.equal(order.sort().values, torch.arange(256))
    groups = order.view(-1, 32) // 32
    assert (groups == groups[:, :1]).all()
    diagonal = hessian.diagonal()[order].view(-1, 32)
    assert (diagonal.diff() <= 0).all()
    assert (diagonal.sum(1).diff() <= 0).all()


def test_asymmetric_calibration_makes_up_for_what_layers_before_have_done() -> None:
    weight, _ = problem()
    generator = torch.Generator().manual_seed(1)
    original = torch.randn(2048, 256, generator=generator) @ torch.randn(256, 256, generator=generator) / 16
    present = original + 0.3 * original.roll(1, dims=1)  # an error that depends on the input, as theirs does
    hessian, cross = present.T @ present / 2048, present.T @ (original - present) / 2048
    stats = LinearStats(tokens=2048, hessian=hessian, cross=cross)

    def distance(share: float) -> float:
        made = Gptq(Options(asymmetric=share)).quantize_linear(weight, stats, Scheme.parse("w8g64"))
        w_hat = dequantize(made.codes, made.scale, made.zero)
        return float((present @ w_hat.T - original @ weight.T).square().mean())

    assert distance(1) < 0.8 * distance(0)
    assert distance(1) < distance(0.5) < distance(0)
    assert Gptq(Options(asymmetric=0.5)).needs == {"hessian", "cross"}
    assert Gptq(Options()).needs == {"hessian"}


def test_asymmetric_calibration_is_that_of_the_paper_column_by_column() -> None:
    weight, hessian = problem(out=4, features=24)
    generator = torch.Generator().manual_seed(3)
    cross = 0.1 * torch.randn(24, 24, generator=generator)
    quantizer = Gptq(Options(asymmetric=1, damp=0.01))
    order = torch.randperm(24, generator=generator)
    factor, _ = _inverse_factor(hessian[order][:, order], torch.ones(24, dtype=torch.bool), 0.01)
    got = quantizer._corrected(weight, cross, factor, order)[:, order]
    damped = hessian[order][:, order].double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(24)
    ordered = cross.double()[order][:, order]
    expected = weight[:, order].double()
    for column in range(23):  # what column lacks, by those behind it alone: w_q (D X^T) H^-1 of what is left
        rest = slice(column + 1, 24)
        share = ordered[rest, column] @ torch.linalg.inv(damped[rest, rest])
        expected[:, rest] += weight[:, order[column]].double()[:, None] * share
    assert torch.allclose(got.double(), expected, atol=1e-4)


def block() -> tuple[Block, dict[str, LinearStats]]:
    """q, k and v on one input, o on another."""
    torch.manual_seed(0)
    rows = {"q": 64, "k": 32, "v": 32, "o": 64}
    module = nn.ModuleDict({name: nn.Linear(256, out, bias=False) for name, out in rows.items()})
    first, second = (LinearStats(tokens=1, hessian=problem(seed=seed)[1]) for seed in (1, 2))
    inputs = [SharedInput(("q", "k", "v")), SharedInput(("o",))]
    schemes = dict.fromkeys(rows, Scheme.parse("w2g64"))
    return Block("model.layers.0", module, inputs, schemes), {"q": first, "k": first, "v": first, "o": second}


def test_layers_with_one_input_are_solved_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, stats = block()
    quantizer, scheme = Gptq(Options(refits=0)), Scheme.parse("w2g64")  # refits follow every code that ties decide
    alone = {
        name: quantizer.quantize_linear(decoder.linear(name).weight.detach(), stats[name], scheme) for name in "qkvo"
    }
    factorizations = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda h: factorizations.append(1) or cholesky(h))
    together = quantizer.quantize_block(decoder, stats)
    assert len(factorizations) == 2
    assert list(together) == decoder.names()
    for name in together:
        assert together[name].codes.shape == decoder.linear(name).weight.shape
        assert (together[name].codes == alone[name].codes).float().mean() >= 0.99
        assert torch.equal(together[name].scale, alone[name].scale)


def test_an_error_in_a_block_names_the_layers() -> None:
    decoder, stats = block()
    stats["o"].hessian[0, 0] = torch.nan
    with pytest.raises(NumericsError, match=r"model\.layers\.0\.o: the Hessian"):
        Gptq(Options()).quantize_block(decoder, stats)


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="act_order: false"):
        Options(act_order=True, static_groups=False)
    with pytest.raises(ValidationError):
        Options(damp=-0.1)


class TestConformance(QuantizerSuite):
    """What every quantizer promises."""

    name = "gptq"
