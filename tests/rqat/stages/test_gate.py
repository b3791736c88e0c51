"""The cold-start gate: what it measures, and what follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rqat.contracts import Completion, Row
from rqat.errors import RqatError
from rqat.stages.gate import GateKeys
from rqat.stages.gate import run as gate
from rqat.storage import read_json
from rqat.train.gate import judge, measure
from tests.training import train_step, write_start


def completions(*texts: str) -> list[Completion]:
    return [Completion(text, tuple(range(len(text))), text.endswith("."), 9) for text in texts]


def exact(completion: str, answer: str, row: Row) -> Any:
    return "unverifiable" if "?" in completion else "correct" if completion.strip(".") == answer else "wrong"


def test_figures() -> None:
    groups = [completions("1.", "1.", "1."), completions("2.", "3.", "?."), completions("4", "5.", "6.")]
    figures = measure(groups, [{"answer": answer} for answer in "129"], exact)
    assert (figures.prompts, figures.samples, figures.correct, figures.with_signal) == (3, 3, 4, 1)
    assert figures.pass_rate == pytest.approx(4 / 9)
    assert figures.signal == pytest.approx(1 / 3)
    assert figures.unverifiable == pytest.approx(1 / 9)
    assert figures.truncated == pytest.approx(1 / 9)


def test_both_floors_must_be_met() -> None:
    figures = measure([completions("1.", "1."), completions("1.", "0.")], [{"answer": "1"}] * 2, exact)
    assert judge(figures, GateKeys(pass_rate=0.75, signal=0.5))["passed"]
    for floors in ({"pass_rate": 0.76}, {"signal": 0.51}):
        verdict = judge(figures, GateKeys(**floors))
        assert not verdict["passed"]
        assert "3 of 4 completions are correct (75.0%" in verdict["why"]
        assert "1 of 2 prompts carry signal" in verdict["why"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(folder)
    return folder


def gated(start: Path, tmp_path: Path, **floors: Any) -> tuple[Any, Any]:
    root = Path(shutil.copytree(start, tmp_path / "root"))
    return train_step(
        root, "grpo", stage="gate", max_tokens=64, max_completion_tokens=6, batch=8,
        gate={"prompts": 5, "samples": 4, **floors},
    )  # fmt: skip


def test_writes_figures_and_samples(start: Path, tmp_path: Path) -> None:
    job, step = gated(start, tmp_path)
    facts = gate.run(job, step)
    assert facts["passed"]
    assert read_json(job.workdir(step) / "gate.json") == facts
    lines = [json.loads(line) for line in (job.workdir(step) / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert all(line["tokens"] <= 6 for line in lines)
    assert gate.run(job, step) == facts


def test_stops_with_the_figures_and_the_ways_out(start: Path, tmp_path: Path) -> None:
    job, step = gated(start, tmp_path, pass_rate=0.97)
    with pytest.raises(
        RqatError, match=r"not ready for grpo: \d+ of 20 completions are correct .*floor 97.0%.*Asked '.*it wrote '"
    ) as info:
        gate.run(job, step)
    assert "gate.action" in info.value.hint


@pytest.mark.parametrize("action", ["skip", "warn"])
def test_goes_on_where_the_recipe_says_so(start: Path, tmp_path: Path, action: str) -> None:
    job, step = gated(start, tmp_path, pass_rate=0.97, action=action)
    facts = gate.run(job, step)
    assert (facts["passed"], facts["action"]) == (False, action)
    assert facts["why"]
