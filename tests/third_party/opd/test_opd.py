"""Distillation on what the student writes: prompts will do, and neither task nor gate nor answers are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rqat.testing
from rqat.registry import Registry
from rqat.storage import read_json
from tests.third_party.installed import install, qat
from tests.third_party.installed import rqat as command

RECIPE = """
name: opd
model: builtin:tiny-reasoner
scheme: w2g128
quantize: rtn
train:
  - objective: acme-opd
    data: {{source: jsonl, path: {data}, validation: 0}}
    max_completion_tokens: 24
    steps: 3
    batch: 4
    max_tokens: 160
    lr: 2.5e-4
export: null
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path / "site", "opd", "rqat_acme_opd")


def recipe(folder: Path) -> str:
    data = folder / "prompts.jsonl"
    lines = [{"prompt": f"Mia has {n} shells and finds {2 * n} more. How many shells has she?"} for n in range(2, 12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return RECIPE.format(data=data)


def test_there_is_no_gate_and_no_task(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(tmp_path), encoding="utf-8")
    shown = command("plan", tmp_path / "recipe.yaml")
    assert "02-train-acme-opd" in shown
    assert "gate" not in shown.partition("02-train-acme-opd")[0]


@pytest.mark.slow
def test_prompts_alone_train_it(tmp_path: Path) -> None:
    lines, _ = qat(tmp_path, recipe(tmp_path))
    assert [line["step"] for line in lines] == [1, 2, 3]
    # The student in 2 bits is far from its teacher, so there is something to learn on whatever it writes.
    assert all(line["loss"] > 0.1 and line["grad_norm"] > 0 for line in lines)
    assert all(1 <= line["completions/mean_length"] <= 24 for line in lines)
    facts = read_json(tmp_path / "run" / "02-train-acme-opd" / "manifest.json")["results"]
    assert facts["rows_used"] == 10
    assert facts["sampler_gap_nats"] < 1e-3


@pytest.mark.slow
class TestSuite(rqat.testing.ObjectiveSuite):
    name = "acme-opd"

    @property
    def _registry(self) -> Registry:
        return Registry.discover()
