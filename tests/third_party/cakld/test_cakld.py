"""A distillation loss of one's own: a trainer subclass, a teacher from the host, and the figures of the built-in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rqat.testing
from rqat.registry import Registry
from tests.third_party.installed import install, qat

RECIPE = """
name: cakld
model: builtin:tiny-reasoner
scheme: w2g128
quantize: rtn
train:
  - objective: {objective}
    data: arith
    steps: {steps}
    batch: 4
    max_tokens: 256
    lr: 2.5e-4
export: null
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site", "cakld", "rqat_acme_cakld")


def trained(folder: Path, objective: str, steps: int = 1, **options: object) -> tuple[list[float], str]:
    """Losses, and what the command printed."""
    folder.mkdir()
    text = RECIPE.format(objective=objective, steps=steps)
    text = text.replace("    data: arith", "".join(f"    {k}: {v}\n" for k, v in options.items()) + "    data: arith")
    lines, printed = qat(folder, text)
    return [line["loss"] for line in lines], printed


@pytest.mark.slow
def test_at_its_ends_it_is_the_kl_that_kd_computes(tmp_path: Path) -> None:
    for gamma, divergence in ((0, "forward"), (1, "reverse")):
        built_in, _ = trained(tmp_path / divergence, "kd", divergence=divergence)
        own, _ = trained(tmp_path / str(gamma), "acme-cakld", gamma=gamma)
        assert own == pytest.approx(built_in, rel=1e-3)


@pytest.mark.slow
def test_gamma_is_the_confidence_of_the_teacher(tmp_path: Path) -> None:
    losses, printed = trained(tmp_path / "a", "acme-cakld", steps=3, rows=8)
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    [gamma] = re.findall(r"gamma is ([\d.]+)", printed)
    assert 0.99 < float(gamma) <= 1  # the teacher has learned this very data


@pytest.mark.slow
class TestSuite(rqat.testing.ObjectiveSuite):
    name = "acme-cakld"

    @property
    def _registry(self) -> Registry:
        return Registry.discover()
