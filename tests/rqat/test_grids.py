"""The grid behind a scheme: built-in, of a third party, and what is told where there is none."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rqat import PluginError, Scheme, UnknownName, grid_of
from rqat.errors import RqatError
from rqat.grids import cost_notes, part_problems, scheme_problems
from rqat.preflight import preflight
from rqat.registry import Registry
from rqat.stages.quantize.command import quantize_plan
from rqat.testing import GridSuite, examine
from rqat.train.optimizer import QuantizedOptimizer
from tests.plugin_maker import write_plugin
from tests.tiny import save_tiny
from tests.toys import backward, toy

OFFSET = '''
"""Evenly spaced values above an offset: `w_hat = q s - b`, with a real `b`, which no whole zero point can say."""

import rqat

class Options(rqat.Options):
    def check(self, context):
        if any(scheme.symmetric for scheme in context.schemes.values()):
            yield rqat.Problem("symmetric codes leave the offset nothing to say.", "Leave out -sym.")

class Offset(rqat.Grid):
    whole_zeros = False

    def fit(self, weight, importance=None):
        low, high = 0.8 * weight.amin(1, keepdim=True), 0.8 * weight.amax(1, keepdim=True)
        return self.snap((high - low).clamp(min=1e-30) / self.scheme.max_code), -low

    def quantize(self, weight, scale, zero):
        return self._code(weight, scale, zero).clamp(0, self.scheme.max_code).byte()

    def decode(self, codes, scale, zero):
        return codes.to(scale.dtype) * scale - zero

    def gradients(self, grad, latent, scale, zero):
        code = self._code(latent, scale, zero)
        nearest = code.clamp(0, self.scheme.max_code)
        inside = (code == nearest).to(latent.dtype)
        of_scale = (grad * (nearest - inside * (latent + zero) / scale)).sum(1, keepdim=True)
        return grad * inside, of_scale, -(grad * (1 - inside)).sum(1, keepdim=True)

    def _code(self, weight, scale, zero):
        return ((weight + zero) / scale).round()

@rqat.hookimpl
def register_grids(register):
    register("acme-offset", options=Options, load=":Offset", bits=(2, 3), slower=4, summary="a real offset")
'''


@pytest.fixture
def offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with a third party's grid, which is the current one meanwhile."""
    write_plugin(tmp_path, "acme-offset-grid", OFFSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry.discover()
    monkeypatch.undo()
    sys.modules.pop("acme_offset_grid", None)  # the next test gets a class that nothing is known of yet
    Registry.discover()


def test_equal_schemes_have_the_same_grid() -> None:
    assert grid_of(Scheme.parse("w2g128")) is grid_of(Scheme.parse("w2g128"))
    assert grid_of(Scheme.parse("w2g128")) != grid_of(Scheme.parse("w2g64"))
    assert grid_of(Scheme.parse("w2g128")).uniform
    assert not grid_of(Scheme.parse("w2g128-seq")).uniform


def test_unknown_grids_are_told_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'sec' is not a grid. Known: seq, uniform. Did you mean 'seq'?"):
        grid_of(Scheme.parse("w2g128-sec"))


def test_a_width_that_a_grid_does_not_have_is_told() -> None:
    registry = Registry.current()
    assert not list(scheme_problems(registry, Scheme.parse("w2g128-seq")))
    (problem,) = scheme_problems(registry, Scheme.parse("w3g128-seq"), "r.yaml:3 scheme")
    assert problem == "r.yaml:3 scheme: 'w3g128-seq' asks for 3 bits; the grid 'seq' has 2."
    (problem,) = scheme_problems(registry, Scheme.parse("w2g128-symm"), "r.yaml:3 scheme")
    assert problem.startswith("r.yaml:3 scheme: 'symm' is not a grid.")


def test_parts_that_do_not_know_a_grid_are_told_with_those_that_do() -> None:
    registry, schemes = Registry.current(), [Scheme.parse("w2g128"), Scheme.parse("w2g128-seq")]
    assert not list(part_problems(registry, registry.card("quantizer", "gptq"), schemes))
    (problem,) = part_problems(registry, registry.card("quantizer", "awq"), schemes)
    assert problem.text == "'awq' cannot fit the grid 'seq' of w2g128-seq; it knows uniform."
    any_grid = [card.name for card in registry.cards("quantizer") if card.grids is None]
    assert {"gptq", "rtn"} <= set(any_grid)
    assert (problem.hint, problem.key) == (f"Use {' or '.join(any_grid)}, or another scheme.", "method")
    (problem,) = part_problems(registry, registry.card("exporter", "gptq"), schemes)
    assert problem.text.startswith("'gptq' cannot write the grid 'seq'")
    assert problem.hint == "Use bf16 or rqat, or another scheme."
    assert not list(part_problems(registry, registry.card("exporter", "bf16"), schemes))


def test_what_a_grid_without_kernels_costs_is_told() -> None:
    registry = Registry.current()
    (note,) = cost_notes(registry, [Scheme.parse("w2g128"), Scheme.parse("w2g128-seq"), Scheme.parse("w2g64-seq")])
    assert (note.level, "9 times as long" in note.text) == ("note", True)


@pytest.mark.parametrize(("scheme", "errors"), [("w2g64-acme-offset", 0), ("w2g64-sym-acme-offset", 1)])
def test_what_a_grid_has_against_a_scheme_is_told_by_the_plan(
    offset: Registry, tmp_path: Path, scheme: str, errors: int
) -> None:
    plan = quantize_plan(offset, str(save_tiny(tmp_path / "tiny")), method="rtn", scheme=scheme, export="bf16")
    found = [finding for finding in preflight(plan) if finding.level == "error"]
    assert len(found) == errors
    for finding in found:
        assert "scheme: 'acme-offset': symmetric codes leave the offset nothing to say." in str(finding)


def test_a_third_partys_grid_keeps_its_promises(offset: Registry) -> None:
    results = list(examine(offset, offset.card("grid", "acme-offset")))
    assert len(results) == len([name for name in dir(GridSuite) if name.startswith("test_")])
    assert not [result for result in results if result.error]


def test_a_third_partys_grid_with_real_zero_points_is_trained_and_resumed(offset: Registry) -> None:
    scheme = Scheme.parse("w2g16-acme-offset")
    grid = grid_of(scheme)
    runs = []
    for _ in range(2):
        model = toy()
        layers = {}
        for name in ("0", "3"):
            own = model.get_submodule(name).weight.data
            layers[name] = grid.quantize_layer(own, *grid.fit_layer(own))
            own.copy_(grid.decode_layer(layers[name]))
        assert layers["0"].zero.dtype == torch.float32
        runs.append((model, QuantizedOptimizer(model, layers, lr=1e-2, scale_lr=1e-2, zero_lr=1e-3)))
    (model, optimizer), (second_model, second) = runs
    before = optimizer.quantized_layers()
    losses = []
    for step in range(4):
        losses.append(backward(model, 0))
        optimizer.step()
        optimizer.zero_grad()
        for name, layer in optimizer.quantized_layers().items():
            assert torch.equal(grid.decode_layer(layer), model.get_submodule(name).weight)
        if step == 1:
            second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert losses[-1] < losses[0]
    assert not torch.equal(optimizer.quantized_layers()["0"].zero, before["0"].zero)
    for _ in range(2):
        backward(second_model, 0)
        second.step()
        second.zero_grad()
    assert all(layer.equals(optimizer.quantized_layers()[name]) for name, layer in second.quantized_layers().items())


def test_a_broken_grid_is_the_plugins_fault(offset: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    card = offset.card("grid", "acme-offset")
    monkeypatch.setattr(__import__(card.module).Offset, "__abstractmethods__", frozenset({"fit"}))
    with pytest.raises(PluginError, match="does not implement fit"):
        grid_of(Scheme.parse("w2g16-acme-offset"))


def test_the_error_for_an_unknown_grid_is_one_line() -> None:
    with pytest.raises(RqatError) as caught:
        grid_of(Scheme.parse("w2g128-nowhere"))
    assert "\n" not in str(caught.value)


def test_a_real_zero_point_on_a_grid_of_whole_ones_is_told_and_not_cut_off() -> None:
    grid = grid_of(Scheme.parse("w3g8"))
    weight = torch.linspace(-1, 1, 16).view(2, 8)
    scale, _ = grid.fit_layer(weight)
    with pytest.raises(PluginError, match=r"a zero point of 3\.25 on the grid 'uniform'.*whole numbers"):
        grid.quantize_layer(weight, scale, torch.full_like(scale, 3.25))
