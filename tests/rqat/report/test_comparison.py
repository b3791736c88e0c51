"""`rqat compare`: every kind of input, what is refused, and figures that can be counted by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rqat.cli.app import build
from rqat.errors import RunError, UnknownName
from rqat.report.comparison import as_csv, as_json, compare, markdown, p_value

N = 40


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_evaluation(
    folder: Path,
    right: set[int],
    *,
    n: int = N,
    task: str = "arith",
    hashed: str = "p",
    answer: int = 0,
    seeds: tuple[int, ...] = (42,),
    **more: Any,
) -> Path:
    """What `rqat eval -o` writes, with the problems `right` solved by every seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"index": i, "seed": seed, "prompt": f"{i}?", "completion": "x", "answer": str(i + answer)}
        | {"verdict": "correct" if i in right else "wrong"}
        for seed in seeds
        for i in range(n)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    share = len(right) / n
    results = {"task": task, "n": n, "accuracy": share, "low": share * 0.9, "high": share, "seeds": list(seeds)}
    results |= {"mean_tokens": 9.4, "truncated": 0.125, "repetition": 0.0, "unclosed_think": 0.5, "prompt_hash": hashed}
    (folder / "results.json").write_text(json.dumps(results | more))
    return folder


def write_step(run_folder: Path, name: str, variant: str, right: set[int], **more: Any) -> Path:
    """A finished step of a run that evaluated a model."""
    folder = write_evaluation(run_folder / name, right, variant=variant, **more)
    results = json.loads((folder / "results.json").read_text())
    manifest = {"step": name, "stage": "evaluate", "variant": variant, "fingerprint": "f", "facts": {}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"results": results, "seconds": 1.0}))
    return folder


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    for name, kd in (("a", 30), ("b", 34)):
        write_step(tmp_path / name, "01-evaluate-arith-bf16", "bf16", set(range(36)))
        write_step(tmp_path / name, "02-evaluate-arith-kd", "kd", set(range(kd)))
    return tmp_path / "a", tmp_path / "b"


def test_two_runs_in_one_table(two_runs: tuple[Path, Path]) -> None:
    (table,) = compare(two_runs)["tasks"]
    assert (table["task"], table["n"], table["against"]) == ("arith", N, "a/bf16")
    rows = {row["model"]: row for row in table["rows"]}
    assert list(rows) == ["a/bf16", "a/kd", "b/bf16", "b/kd"]
    assert "says" not in rows["a/bf16"]
    assert (rows["a/kd"]["gained"], rows["a/kd"]["lost"], rows["a/kd"]["p"]) == (0, 6, pytest.approx(2 / 2**6))
    assert rows["a/kd"]["difference"] == pytest.approx(-0.15)
    assert rows["a/kd"]["difference_low"] < -0.15 < rows["a/kd"]["difference_high"] < 0
    assert (rows["a/kd"]["says"], rows["b/kd"]["says"]) == ("worse", "no difference shown")
    assert (rows["b/bf16"]["difference"], rows["b/bf16"]["says"]) == (0, "no difference shown")


def test_any_model_can_be_the_one_compared_with(two_runs: tuple[Path, Path]) -> None:
    (table,) = compare(two_runs, against="a/kd")["tasks"]
    rows = {row["model"]: row for row in table["rows"]}
    assert (rows["a/bf16"]["says"], rows["a/bf16"]["gained"], rows["a/bf16"]["lost"]) == ("better", 6, 0)
    with pytest.raises(UnknownName, match="--against: 'kd' is not a model of these evaluations"):
        compare(two_runs, against="kd")


def test_a_run_alone_a_step_a_folder_and_a_file(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    alone = compare([two_runs[0]])["tasks"][0]
    assert [row["model"] for row in alone["rows"]] == ["bf16", "kd"]
    made = write_evaluation(tmp_path / "result", set(range(20)), model="some/where/tiny")
    (table,) = compare([two_runs[0] / "02-evaluate-arith-kd", made / "results.json"])["tasks"]
    assert [row["model"] for row in table["rows"]] == ["kd", "tiny"]
    assert table["rows"][1]["lost"] == 10


def test_what_is_given_twice_counts_once(two_runs: tuple[Path, Path]) -> None:
    (table,) = compare([two_runs[0], two_runs[0], two_runs[0] / "02-evaluate-arith-kd"])["tasks"]
    assert [row["model"] for row in table["rows"]] == ["bf16", "kd"]


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_step(tmp_path / name / "run", "01-evaluate-arith-kd", "kd", {1})
    (table,) = compare([tmp_path / "x" / "run", tmp_path / "y" / "run"])["tasks"]
    assert len({row["model"] for row in table["rows"]}) == 2


def test_only_what_all_were_asked_is_compared(tmp_path: Path) -> None:
    one = write_step(tmp_path / "a", "01-evaluate-arith-kd", "kd", {1}).parent
    write_step(one, "02-evaluate-math-kd", "kd", {1}, task="math500")
    other = write_step(tmp_path / "b", "01-evaluate-math-kd", "kd", {1, 2}, task="math500").parent
    found = compare([one, other])
    assert [table["task"] for table in found["tasks"]] == ["math500"]
    assert found["left_out"] == [f"{one / '01-evaluate-arith-kd'} (arith)"]
    assert [table["task"] for table in compare([one], task="arith")["tasks"]] == ["arith"]
    with pytest.raises(UnknownName, match="--task: 'gsm8k' is not a task of these evaluations"):
        compare([one], task="gsm8k")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"hashed": "q"}, r"asked different prompts of 'arith' \(40 and 40 problems\)"),
        ({"n": 30}, r"graded against different answers of 'arith' \(40 and 30 problems\)"),
        ({"answer": 1}, "graded against different answers of 'arith'"),
        ({"task": "gsm8k"}, "was evaluated on arith, .*b' on gsm8k"),
    ],
)
def test_what_was_asked_something_else_is_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    one = write_evaluation(tmp_path / "a", {1})
    other = write_evaluation(tmp_path / "b", {1}, **more)
    with pytest.raises(RunError, match=says):
        compare([one, other])
    done = run("compare", one, other)
    assert done.exit_code == 2
    assert not done.stdout


def test_a_folder_without_evaluations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no evaluation"):
        compare([tmp_path])
    with pytest.raises(RunError, match="does not exist"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "results.json").write_text('{"task": "kl", "figures": {"kl": 0.1}}')
    with pytest.raises(RunError, match="holds no evaluation"):
        compare([tmp_path])


def test_samples_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, {1}) for name in ("a", "b")]
    for folder in folders:
        lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
        (folder / "samples.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=r"tells of 39 problems, its results\.json of 40"):
        compare(folders)


def test_scores_that_are_not_right_or_wrong_are_shown_and_not_paired(tmp_path: Path) -> None:
    folders = [write_evaluation(tmp_path / name, {1}, hashed="") for name in ("a", "b")]
    (table,) = compare(folders)["tasks"]
    assert all("says" not in row for row in table["rows"])
    assert "Not paired" in table["notes"][0]


def test_what_else_differs_is_told(tmp_path: Path) -> None:
    sampling = {"temperature": 0.0, "batch": 8}
    one = write_evaluation(tmp_path / "a", {1}, backend="packed", generation=sampling)
    other = write_evaluation(tmp_path / "b", {1}, backend="engine", generation=sampling | {"batch": 9})
    (table,) = compare([one, other])["tasks"]
    assert table["notes"] == ["The answers were written by different backends: packed; engine."]


def test_several_seeds_count_by_problem(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "a", set(range(10)), seeds=(1, 2, 3))
    other = write_evaluation(tmp_path / "b", set(range(18)), seeds=(1, 2, 3))
    (table,) = compare([one, other])["tasks"]
    assert table["rows"][1]["gained"] == 8  # and not 24
    assert table["rows"][1]["seeds"] == 3
    assert "each 3 times" in markdown({"tasks": [table]})


def test_the_three_formats_say_the_same(two_runs: tuple[Path, Path]) -> None:
    found = compare(two_runs)
    text = markdown(found)
    assert "| a/kd   | 75.0 (67.5 to 75.0) |" in text
    assert "0 / 6" in text
    assert "no difference shown" in text
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["model"] for row in rows] == ["a/bf16", "a/kd", "b/bf16", "b/kd"]
    assert (rows[1]["lost"], rows[1]["says"], rows[1]["unclosed_thinking"], rows[1]["cut_off"]) == (
        *("6", "worse"),
        *("0.5", "0.125"),
    )
    assert json.loads(as_json(found)) == json.loads(json.dumps(found))


def test_a_table_line_is_one_line_whatever_a_model_is_called(tmp_path: Path) -> None:
    one = write_evaluation(tmp_path / "a", {1}, model="evil|\n| \x1b[31mred")
    lines = markdown(compare([one])).splitlines()
    assert [line for line in lines if "evil" in line] == [line for line in lines if "red" in line]
    assert "\x1b" not in run("compare", one).stdout


def test_the_command_writes_a_file(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("compare", *two_runs, "--format", "csv", "-o", tmp_path / "new" / "table.csv")
    assert done.exit_code == 0
    assert (tmp_path / "new" / "table.csv").read_text() == as_csv(compare(two_runs))
    assert run("compare", *two_runs, "-o", tmp_path).exit_code == 2


def test_p_values_are_short() -> None:
    assert [p_value(p) for p in (0.0, 0.0009, 0.0312, 0.049, 0.31, 1.0)] == [
        *("<0.001", "<0.001", "0.031", "0.049", "0.31", "1.00")
    ]
