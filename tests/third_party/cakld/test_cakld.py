"""A distillation loss of one's own: a trainer subclass, a teacher from the host, and the figures of the built-in."""

from __future__ import annotations

import logging
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


def trained(folder: Path, objective: str, steps: int = 1, **options: object) -> list[float]:
    folder.mkdir()
    text = RECIPE.format(objective=objective, steps=steps)
    text = text.replace("    data: arith", "".join(f"    {k}: {v}\n" for k, v in options.items()) + "    data: arith")
    return [line["loss"] for line in qat(folder, text)]


@pytest.mark.slow
def test_at_its_ends_it_is_the_kl_that_kd_computes(tmp_path: Path) -> None:
    forward = trained(tmp_path / "a", "kd", divergence="forward")
    assert trained(tmp_path / "b", "acme-cakld", gamma=0) == pytest.approx(forward, rel=1e-3)
    reverse = trained(tmp_path / "c", "kd", divergence="reverse")
    assert trained(tmp_path / "d", "acme-cakld", gamma=1) == pytest.approx(reverse, rel=1e-3)


@pytest.mark.slow
def test_gamma_is_the_confidence_of_the_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rqat"):
        losses = trained(tmp_path / "a", "acme-cakld", steps=3, rows=8)
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    [gamma] = re.findall(r"gamma is ([\d.]+)", caplog.text)
    assert 0.5 < float(gamma) < 1  # the teacher has learned this very data


@pytest.mark.slow
class TestSuite(rqat.testing.ObjectiveSuite):
    name = "acme-cakld"

    @property
    def _registry(self) -> Registry:
        return Registry.discover()
