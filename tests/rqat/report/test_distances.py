"""`rqat compare` of tasks that compare a model with its original: figures, intervals, pairs, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rqat.errors import RunError
from rqat.report.comparison import as_csv, as_json, compare, markdown
from rqat.report.run_files import RunFiles, StepFiles
from rqat.report.summary import compared

N = 30


def write_distance(
    folder: Path, shift: float = 0.0, *, n: int = N, rows_hash: str = "r", seed: int = 0, **more: Any
) -> Path:
    """What `rqat eval kl -o` writes: rows of unlike lengths, whose KL and surprise are `shift` larger."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tokens, kl = rng.integers(5, 50, n), rng.gamma(2.0, 0.05, n)
    noise = np.random.default_rng(round(shift * 1e6)).normal(0, 0.01, n) if shift else np.zeros(n)
    rows = [
        {"index": i, "tokens": int(tokens[i]), "kl": kl[i] + shift + noise[i], "nll": 1.0 + kl[i] + shift}
        for i in range(n)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = {key: sum(row["tokens"] * row[key] for row in rows) / int(tokens.sum()) for key in ("kl", "nll")}
    results = {"task": "kl", "data": "text wiki.txt", "n": n, "tokens": int(tokens.sum()), "rows_hash": rows_hash}
    results |= {"figures": {"kl": mean["kl"], "perplexity": math.exp(mean["nll"])}, "model": folder.name}
    (folder / "results.json").write_text(json.dumps(results | more))
    return folder


def rows_of(table: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["model"], row["figure"]): row for row in table["rows"]}


def test_figures_have_intervals_and_are_paired(tmp_path: Path) -> None:
    folders = [write_distance(tmp_path / name, shift) for name, shift in (("a", 0.0), ("b", 0.02), ("c", 1e-4))]
    (table,) = compare(folders)["tasks"]
    rows = rows_of(table)
    assert list(rows) == [(model, figure) for figure in ("kl", "perplexity") for model in ("a", "b", "c")]
    for row in rows.values():
        assert row["low"] < row["value"] < row["high"]
    a, b, c = (rows[model, "kl"] for model in ("a", "b", "c"))
    assert "says" not in a
    assert b["difference"] == pytest.approx(b["value"] - a["value"])
    assert 0 < b["difference_low"] < b["difference"] < b["difference_high"]
    # The rows of one text are far apart, the models on each row are not: only the pairs show the difference.
    assert a["high"] > b["low"]
    assert (b["says"], c["says"]) == ("more", "no difference shown")
    assert b["p"] < 0.001
    ratio = rows["b", "perplexity"]
    assert ratio["difference"] == pytest.approx(ratio["value"] / rows["a", "perplexity"]["value"])
    assert (ratio["is_ratio"], ratio["says"]) == (True, "more")
    (table,) = compare(folders, against="b")["tasks"]
    assert rows_of(table)["a", "kl"]["says"] == "less"


def run_of(folder: Path, shifts: Mapping[str, float]) -> RunFiles:
    """A run whose models were compared with the original on the same rows; the last was trained from the one before."""
    run = RunFiles(folder, "made-up", "w2g64", {}, "cpu")
    made, asked = [], []
    for variant, shift in shifts.items():
        at = write_distance(folder / variant, shift)
        stage = {"gptq": "quantize", "kd": "train"}.get(variant)
        if stage:
            made.append(StepFiles(f"make-{variant}", at, stage, variant, start="gptq" if stage == "train" else ""))
        results = json.loads((at / "results.json").read_text()) | {"seconds": 1.0}
        asked.append(StepFiles(f"kl-{variant}", at, "evaluate", variant, results=results))
    run.steps = [*made, *asked]
    return run


def test_a_report_has_intervals_and_pairs_models_on_the_same_rows(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"bf16": 0.0, "gptq": 0.05, "kd": 0.02})
    (found,) = compared(run).values()
    assert list(found) == ["bf16", "gptq", "kd"]
    (table,) = compare([tmp_path / name for name in found], against="gptq")["tasks"]
    rows = rows_of(table)
    for variant, told in found.items():
        for figure, (low, high) in told["intervals"].items():
            assert (low, high) == (rows[variant, figure]["low"], rows[variant, figure]["high"])
            assert low < told["figures"][figure] < high
    assert [list(told["paired"]) for told in found.values()] == [[], [], ["gptq"]]
    tested = found["kd"]["paired"]["gptq"]
    assert list(tested) == ["kl", "perplexity"]
    assert tested["kl"]["says"] == "less"
    for figure, test in tested.items():
        assert {key: rows["kd", figure][key] for key in test} == test


def test_a_report_without_whole_rows_has_no_intervals(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"gptq": 0.05, "kd": 0.02})
    (tmp_path / "gptq" / "samples.jsonl").write_text('{"tokens": 3, "kl": "x"}\n')
    (found,) = compared(run).values()
    assert found["gptq"]["intervals"] == {}
    assert found["kd"]["paired"] == {}
    assert list(found["kd"]["intervals"]) == ["kl", "perplexity"]


def test_other_texts_are_refused(tmp_path: Path) -> None:
    one = write_distance(tmp_path / "a")
    with pytest.raises(RunError, match=r"on different rows of 'kl' \(30 and 20 rows\)"):
        compare([one, write_distance(tmp_path / "b", n=20, rows_hash="s")])
    other = write_distance(tmp_path / "c")
    told = {"task": "arith", "n": 1, "accuracy": 1.0, "low": 1.0, "high": 1.0}
    (other / "results.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"was evaluated on kl, .*c' on arith"):
        compare([one, other])


def test_rows_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    one = write_distance(tmp_path / "a")
    lines = (one / "samples.jsonl").read_text().splitlines(keepends=True)
    (one / "samples.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=r"tells of 29 rows, its results\.json of 30"):
        compare([one])


def test_figures_that_the_rows_do_not_explain_have_no_interval(tmp_path: Path) -> None:
    """Such as those of a task whose figure is no mean over tokens, and of a single row."""
    folders = [write_distance(tmp_path / name, figures={"kl": 0.5, "worst": 2.0}) for name in ("a", "b")]
    (table,) = compare(folders)["tasks"]
    assert [(row["figure"], row["low"], "says" in row) for row in table["rows"]] == [
        *(("kl", None, False), ("kl", None, False), ("worst", None, False), ("worst", None, False))
    ]
    assert table["notes"] == ["No interval where the rows do not add up to the figure, or there is one row only."]
    (table,) = compare([write_distance(tmp_path / "c", n=1)])["tasks"]
    assert table["rows"][0]["low"] is None
    assert "| kl         | c     |" in markdown({"tasks": [table]})


def test_different_originals_are_told(tmp_path: Path) -> None:
    folders = [write_distance(tmp_path / name, original=f"model-{name}") for name in ("a", "b")]
    assert compare(folders)["tasks"][0]["notes"] == ["The models were compared with different originals."]
    assert compare(folders[:1])["tasks"][0]["notes"] == []


def test_the_three_formats(tmp_path: Path) -> None:
    found = compare([write_distance(tmp_path / "a"), write_distance(tmp_path / "b", 0.02)])
    text = markdown(found)
    assert "### kl on text wiki.txt: 30 rows, " in text
    assert "sign flips" in text
    assert "McNemar" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| kl ") and "| b " in line]
    assert "<0.001 | more" in line
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(row["model"], row["figure"]) for row in rows[:2]] == [("a", "kl"), ("b", "kl")]
    assert float(rows[1]["value"]) > float(rows[0]["value"])
    assert rows[1]["says"] == "more"
    assert json.loads(as_json(found)) == json.loads(json.dumps(found))
