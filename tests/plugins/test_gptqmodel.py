"""gptqmodel: another package's GPTQ behind rqat's contract; what is told where the package is not installed.

RQAT_SERVERS=... $RQAT_SERVERS/transformers/bin/python -m pytest -m peers tests/plugins/test_gptqmodel.py
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import rqat_gptqmodel
from rqat import LinearStats, MissingPackage, NumericsError, Scheme, grid_of
from rqat.registry import Registry
from rqat.testing import QuantizerSuite, examine
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from rqat_gptqmodel import Options, installed
from rqat_gptqmodel.solver import GptqModel
from tests.rqat.cli.test_commands import rqat

from .test_gptq import loss, problem, rounded

with_package = pytest.mark.skipif(installed() is None, reason="needs the package gptqmodel")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(rqat_gptqmodel, "version", missing)


@pytest.mark.usefixtures("absent")
def test_without_the_package_it_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    given = ("builtin:tiny-reasoner", "--method", "gptqmodel", "--scheme", "w3g128", "--calibration", "arith")
    result = rqat("quantize", *given, "-o", tmp_path / "out")
    assert result.exit_code == 2
    (told,) = [line for line in result.stderr.splitlines() if "not installed" in line]
    assert told.startswith("Error: --method: the package gptqmodel is not installed"), result.stderr
    assert "pip install 'rqat[gptqmodel]'" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("absent")
def test_the_doctor_skips_what_it_cannot_run() -> None:
    registry = Registry.discover()
    results = list(examine(registry, registry.card("quantizer", "gptqmodel")))
    assert not [result for result in results if result.error]
    skipped = [result.skipped for result in results if result.skipped]
    assert len(skipped) > 3
    assert all("gptqmodel is not installed" in reason for reason in skipped)
    with pytest.raises(MissingPackage, match="not installed"):
        GptqModel(Options())


@pytest.mark.parametrize(("version", "told"), [("7.6.0", 0), ("7.6.3", 0), ("7.7.0", 1)])
def test_another_release_is_a_warning(monkeypatch: pytest.MonkeyPatch, version: str, told: int) -> None:
    from rqat import Context

    monkeypatch.setattr(rqat_gptqmodel, "version", lambda name: version)
    found = list(Options().check(Context()))
    assert [problem.level for problem in found] == ["warning"] * told


@with_package
@pytest.mark.peers
class TestSuite(QuantizerSuite):
    name = "gptqmodel"


@with_package
@pytest.mark.peers
@pytest.mark.parametrize("order", ["groups", True, False])
@pytest.mark.parametrize("spelling", ["w2g64", "w3g64", "w4g64-sym", "w3-row"])
def test_it_makes_up_for_errors_as_ours_does(spelling: str, order: bool | str) -> None:
    """Without a search of the span, and at the same damping, ours differs by its order of columns at most."""
    weight, hessian = problem()
    stats, scheme = LinearStats(tokens=1024, hessian=hessian), Scheme.parse(spelling)
    theirs = GptqModel(Options(act_order=order, damp=0.05)).quantize_linear(weight, stats, scheme)
    ours = Gptq(GptqOptions(act_order=order, clip="minmax", refits=0)).quantize_linear(weight, stats, scheme)
    lost = [loss(result, weight, hessian) for result in (theirs, ours, rounded(weight, spelling, "minmax"))]
    assert lost[0] < 0.8 * lost[2]
    assert lost[0] == pytest.approx(lost[1], rel=0.15)


@with_package
@pytest.mark.peers
def test_what_is_kept_is_what_the_loop_rounded_to() -> None:
    """Codes found from its values: scales are rounded before, so nothing is rounded twice."""
    weight, hessian = problem()
    scheme = Scheme.parse("w3g64")
    solver = GptqModel(Options())
    task = solver._task(weight, scheme)
    task.H, task.nsamples = hessian.clone(), 1024
    values = task.quantize()[0]
    kept = solver.quantize_linear(weight, LinearStats(tokens=1024, hessian=hessian), scheme)
    assert torch.allclose(grid_of(scheme).decode_layer(kept), values, rtol=1e-5, atol=1e-7)


@with_package
@pytest.mark.peers
def test_hessians_that_are_of_no_use() -> None:
    weight, hessian = problem()
    solver, scheme = GptqModel(Options()), Scheme.parse("w3g64")
    never = solver.quantize_linear(weight, LinearStats(tokens=8, hessian=torch.zeros_like(hessian)), scheme)
    assert "never seen" in never.note
    with pytest.raises(NumericsError, match="Hessian"):
        solver.quantize_linear(weight, LinearStats(tokens=8, hessian=hessian * torch.nan), scheme)


@with_package
@pytest.mark.peers
def test_a_whole_model(tmp_path: Path) -> None:
    given = ("builtin:tiny-reasoner", "--method", "gptqmodel", "--scheme", "w3g128", "--calibration", "arith")
    result = rqat("quantize", *given, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
