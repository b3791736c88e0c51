"""The source `traces`: what it keeps, that an interruption changes nothing, and who shares what it wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rqat import Completion, DataError, LoadedModel, RecipeError, Row, export, quantize
from rqat.cli.app import build
from rqat.job import Silence
from rqat.model.checkpoint import save_checkpoint
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight, read_data
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.produce import run as produce
from rqat.storage import read_json, read_json_lines
from rqat.testing import SourceSuite
from tests.rqat.cli.test_commands import rqat

PROMPTS: dict[str, Any] = {"source": "arith", "steps": [1, 2]}
TRACES: dict[str, Any] = {"source": "traces", "prompts": PROMPTS, "limit": 12, "max_new_tokens": 96, "batch": 4}
RECIPE: dict[str, Any] = {
    "name": "traces",
    "model": "builtin:tiny-reasoner",
    "calibration": TRACES | {"samples": 4, "tokens": 64},
    "quantize": "gptq",
    "train": [{"objective": "kd", "data": TRACES, "steps": 2, "batch": 4, "max_tokens": 256}],
    "export": None,
}
NAME = "01-produce-traces"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def source(registry: Registry, **options: Any) -> Any:
    card = registry.card("source", "traces")
    return registry.make(card, registry.options(card, {"prompts": PROMPTS, **options}))


def planned(registry: Registry, *overrides: str, **changes: Any) -> Plan:
    return build_plan(built_recipe(RECIPE | changes, {}, overrides), registry)


class Writer:
    """Writes by a rule: the answer of every problem, unless `spoil` makes something else of it."""

    def __init__(self, spoil: Any = lambda place, completion: completion) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.total: set[int] = set()
        self._spoil = spoil

    def loaded(self) -> LoadedModel:
        return LoadedModel(None, None, self.complete, self.grade)  # type: ignore[arg-type]

    def complete(
        self, rows: Sequence[Row], samples: int, *, seed: int, total: int, **settings: Any
    ) -> list[list[Completion]]:
        self.asked.append((seed, len(rows), samples))
        self.total.add(total)
        return [
            [self._spoil((place, sample), self._right(row, f"{seed}/{sample}")) for sample in range(samples)]
            for place, row in enumerate(rows)
        ]

    def _right(self, row: Row, mark: str) -> Completion:
        return Completion(f"{mark} \\boxed{{{row['answer']}}}", (1, 2, 3), ended=True, limit=96)

    def grade(self, task: str, completion: str, row: Row) -> Any:
        assert task == "arith"
        return "correct" if f"\\boxed{{{row['answer']}}}" in completion else "wrong"


# ------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("prompts", ["arith", {"source": "arith"}, [{"source": "arith"}]])
def test_the_prompts_may_be_a_name_a_mapping_or_a_list(registry: Registry, prompts: Any) -> None:
    made = registry.options(registry.card("source", "traces"), {"prompts": prompts, "keep": "finished"})
    assert [part.source for part in made.prompts] == ["arith"]
    assert made.keep == ("finished",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "correct"}, "'correct' needs a grader; name one with `task`"),
        ({"n": 4}, "4 greedy completions of a prompt are all alike"),
        ({"keep": "rihgt"}, "'rihgt' is not one of finished, not-looping, correct"),
        ({"task": "aritj"}, "'aritj' is not a task"),
        ({"prompts": [{"source": "arith", "stesp": 1}]}, "'stesp' is not a key"),
        ({"prompts": ["arith", "gsm8k"]}, "prompts"),
    ],
)
def test_mistakes_are_told(registry: Registry, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        registry.options(registry.card("source", "traces"), {"prompts": PROMPTS, **options})
    assert says in str(caught.value)


def test_what_is_kept_and_what_is_told(registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(place: tuple[int, int], c: Completion) -> Completion:
        if place == (0, 0):
            return Completion(c.text, c.tokens, False, 96, looping=True)
        if place == (1, 1):
            return Completion(c.text, c.tokens, False, 96)
        return Completion("no box", c.tokens, True, 96) if place == (2, 0) else c

    made = source(
        registry, limit=3, n=2, temperature=1.0, task="arith", keep=["finished", "not-looping", "correct"], batch=6
    )
    told = made.produce(tmp_path, Writer(spoil).loaded(), "train", 0)
    assert told == {
        "prompts": 3,
        "completions": 6,
        "kept": 3,
        "dropped": {"looping": 1, "unfinished": 1, "not correct": 1},
        "answered": 3,
        "tokens": 9,
        "verdicts": {"correct": 5, "wrong": 1},
    }
    assert "3 of 6 completions are left out: 1 looping, 1 unfinished, 1 not correct." in caplog.text
    made.folder = tmp_path
    rows = list(made.rows("train", 0))
    # The first samples of all prompts, then the second ones.
    assert [row["completion"].partition(" ")[0] for row in rows] == ["0/0", "0/1", "0/1"]
    assert all(set(row) == {"prompt", "completion", "answer", "place"} for row in rows)

    (tmp_path / "silent").mkdir()
    made = source(registry, limit=2, keep=[], batch=6)
    silent = Writer(lambda place, c: Completion(" ", (1,), True, 96) if place == (0, 0) else c)
    assert made.produce(tmp_path / "silent", silent.loaded(), "train", 0)["dropped"] == {"empty": 1}

    made = source(registry, limit=2, keep=["not-looping"], batch=6)
    made.folder = tmp_path / "all"
    made.folder.mkdir()
    told = made.produce(made.folder, Writer(spoil).loaded(), "train", 0)
    assert told["dropped"] == {"looping": 1}
    assert "verdicts" not in told


def test_a_system_prompt_and_settings_of_the_template_stay_with_the_rows(registry: Registry, tmp_path: Path) -> None:
    made = source(registry, limit=2, system="Be brief.", chat_template_kwargs={"enable_thinking": False}, batch=6)
    made.produce(tmp_path, Writer(lambda place, c: c).loaded(), "train", 0)
    made.folder = tmp_path
    for row in made.rows("train", 0):
        assert (row["system"], row["template"]) == ("Be brief.", {"enable_thinking": False})


def test_what_a_source_alone_knows_may_stand_in_its_rows(registry: Registry, tmp_path: Path) -> None:
    class Dated:
        def rows(self, split: str, seed: int) -> Iterator[dict[str, Any]]:
            yield {"prompt": "What is 1 + 1?", "answer": "2", "seen": date(2026, 11, 30)}

    made = source(registry)
    made.combine([Dated()])
    made.produce(tmp_path, Writer().loaded(), "train", 0)
    made.folder = tmp_path
    assert [row["seen"] for row in made.rows("train", 0)] == ["2026-11-30"]


def test_nothing_kept_is_an_error_that_says_why(registry: Registry, tmp_path: Path) -> None:
    cut = Writer(lambda place, c: Completion(c.text, c.tokens, False, 96))
    with pytest.raises(DataError, match=r"none of 4 completions is kept: 4 unfinished\. Allow more"):
        source(registry, limit=4).produce(tmp_path, cut.loaded(), "train", 0)


def test_a_conversation_gets_one_more_turn() -> None:
    from rqat_traces.answers import trace

    user, old = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "old"}
    for turns in ([user], [user, old]):
        assert trace({"messages": turns, "answer": "2"}, "new")["messages"] == [
            user,
            {"role": "assistant", "content": "new"},
        ]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.69, 0.99])
def test_a_file_that_was_cut_off_anywhere_is_completed_to_the_same_bytes(
    registry: Registry, tmp_path: Path, share: float
) -> None:
    options = {"limit": 7, "n": 2, "temperature": 1.0, "batch": 4}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    first, again = Writer(), Writer()
    told = source(registry, **options).produce(whole, first.loaded(), "train", 3)
    assert first.asked == [(3, 2, 2), (5, 2, 2), (7, 2, 2), (9, 1, 2)]
    assert first.total == {14}
    data = (whole / "traces.jsonl").read_bytes()
    (cut / "traces.jsonl").write_bytes(data[: int(len(data) * share)])
    assert source(registry, **options).produce(cut, again.loaded(), "train", 3) == told
    assert (cut / "traces.jsonl").read_bytes() == data
    assert again.asked == first.asked[len(first.asked) - len(again.asked) :]
    assert again.total == {sum(rows * samples for _, rows, samples in again.asked)}

    done = Writer()
    source(registry, **options).produce(whole, done.loaded(), "train", 3)
    assert done.asked == []


# ------------------------------------------------------------------------------------------------------ the plan


def test_calibration_and_training_share_one_step(registry: Registry) -> None:
    plan = planned(registry)
    assert [(step.name, step.reads) for step in plan.steps] == [
        (NAME, []),
        ("02-calibrate", [NAME]),
        ("03-quantize-gptq", []),
        ("04-train-kd", [NAME]),
    ]


def test_the_grader_counts_with_its_source(registry: Registry) -> None:
    def facts(*overrides: str) -> Any:
        plan = planned(registry, *overrides)
        return plan.facts(plan.step(NAME))["parts"]["source"]

    graded = facts("calibration.task=arith", "train.0.data.task=arith")
    assert [part["name"] for part in graded["parts"]] == ["arith", "arith"]
    assert graded["parts"][1]["source"]
    assert [part["name"] for part in facts()["parts"]] == ["arith"]


def test_it_is_about_what_its_prompts_are_about(registry: Registry) -> None:
    text = {"source": "text", "path": __file__}
    graded = TRACES | {"task": "arith"}
    plan = planned(registry, calibration=RECIPE["calibration"] | graded, train=[RECIPE["train"][0] | {"data": text}])
    [warning] = [found.text for found in preflight(plan, offline=True) if "domains" in found.text]
    assert "calibration: math, kd: text" in warning


def test_data_that_cannot_be_asked_is_told_before_the_run(registry: Registry, tmp_path: Path) -> None:
    def told(prompts: dict[str, Any], **options: Any) -> list[str]:
        plan = planned(registry, calibration=RECIPE["calibration"] | {"prompts": prompts, **options}, train=[])
        return [str(finding) for finding in read_data(plan, registry, offline=True)]

    assert told(PROMPTS) == []
    [no_prompt] = told({"source": "text", "path": __file__})
    assert re.search(r"test_traces\.py:\d+ has no prompt to answer", no_prompt)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?"}\n' * 3)
    rows = {"source": "jsonl", "path": str(tmp_path / "rows.jsonl"), "validation": 0}
    assert told(rows) == []
    [no_answer] = told(rows, task="arith")
    assert "rows.jsonl:" in no_answer
    assert "has no answer, by which the grader of 'arith' could judge" in no_answer


def test_more_tokens_than_the_context_holds_are_told(registry: Registry) -> None:
    plan = planned(registry, "calibration.max_new_tokens=5000", train=[])
    assert any("5000, but the model's context is" in found.text for found in preflight(plan, offline=True))


# ---------------------------------------------------------------------------------------------- with a real model


@pytest.mark.slow
def test_less_room_than_was_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = [7, 5, 6]
    monkeypatch.setattr(produce, "writer_for", lambda model: None)
    monkeypatch.setattr(
        produce, "complete_rows", lambda *given, **named: [[Completion("a", (1,), ended=True, limit=limits.pop(0))]]
    )
    job: Any = SimpleNamespace(progress=Silence())
    row: Row = {"prompt": "a"}
    with produce.loaded(job, None, None, "produce traces") as given:  # type: ignore[arg-type]
        given.complete([row], max_new_tokens=7)
    assert not caplog.messages
    with produce.loaded(job, None, None, "produce traces") as given:  # type: ignore[arg-type]
        for _ in range(2):
            given.complete([row], max_new_tokens=7, total=2)
    text = "produce traces: completions end after 5 tokens, all that the longest prompt leaves; 7 were asked for."
    assert caplog.messages == [text]


def test_conformance(registry: Registry) -> None:
    class Traces(SourceSuite):
        name = "traces"
        options: ClassVar = {"prompts": PROMPTS, "limit": 4, "max_new_tokens": 64, "task": "arith", "keep": "correct"}

    Traces.registry = registry
    suite = Traces()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()


def command(out: Path, *more: object) -> list[str]:
    words = ["builtin:tiny-reasoner", "--prompts", "arith:steps=[1,2]", "-n", 2, "--temperature", 0.9, "--batch", 4]
    words += ["--limit", 24, "--max-new-tokens", 96, "--task", "arith", "-o", out, *more]
    return [str(word) for word in ["traces", *words]]


@pytest.mark.long
def test_the_command_killed_in_the_middle_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    result = rqat(*command(whole))
    assert result.exit_code == 0, result.stderr
    assert "completions" in result.stdout
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "rqat", *command(killed)], stdout=log, stderr=log)
    partial = tmp_path / ".killed.jsonl.rqat" / f"{NAME}.partial" / "traces.jsonl"
    while process.poll() is None and not (partial.is_file() and partial.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert partial.is_file(), (tmp_path / "log").read_text()
    assert 0 < len(read_json_lines(partial)) < 48
    assert not killed.exists()
    result = rqat(*command(killed))
    assert result.exit_code == 0, result.stderr
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "log", "whole.jsonl"]
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert len(rows) > 24
    assert all(set(row) == {"prompt", "completion", "answer"} for row in rows)

    again = rqat(*command(whole))
    assert again.exit_code == 2
    assert "is there already" in again.stderr


@pytest.mark.slow
def test_the_command_takes_a_quantized_model_and_a_step_of_a_run(tmp_path: Path) -> None:
    """Which differ in their format alone, so that they write the same."""
    made = quantize("builtin:tiny-reasoner", method="rtn", scheme="w4g64", device="cpu")
    export(made, tmp_path / "exported", "compressed-tensors")
    (tmp_path / "step").mkdir()
    save_checkpoint(tmp_path / "step", made.model, made.tokenizer, made.layers)
    asked = ("--prompts", "arith:steps=[1,2]", "--limit", 1, "--max-new-tokens", 96)
    for name in ("exported", "step"):
        result = rqat("traces", tmp_path / name, *asked, "-o", tmp_path / f"{name}.jsonl")
        assert result.exit_code == 0, result.stderr
    written = read_json_lines(tmp_path / "exported.jsonl")
    assert written == read_json_lines(tmp_path / "step.jsonl")
    assert len(written) == 1


def test_the_command_reads_prompts_that_lie_beside_what_it_writes(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "1+1="}\n')
    out = tmp_path / "out.jsonl"
    result = rqat("traces", "builtin:tiny-reasoner", "--prompts", prompts, "--max-new-tokens", 64, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert sorted(tmp_path.iterdir()) == [out, prompts]
    assert [row["prompt"] for row in read_json_lines(out)] == ["1+1="]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--keep", "correkt"), "--keep: 'correkt' is not one of"),
        (("--task", "nobody"), "--task: 'nobody' is not a task"),
        (("--prompts", "nobody"), "--prompts: 'nobody' is not a source"),
        (("--prompts", f"text:path={__file__}"), "has no prompt to answer"),
    ],
)
def test_mistakes_of_the_command_leave_nothing(tmp_path: Path, more: tuple[str, str], says: str) -> None:
    result = rqat(*command(tmp_path / "new" / "out.jsonl", *more))
    assert result.exit_code == 2
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_among_those_that_resume() -> None:
    from rqat.cli.app import RESUMABLE

    assert "traces" in RESUMABLE & {command.name for command in build().registered_commands}


@pytest.mark.slow
def test_a_whole_run_reads_what_was_written_once(tmp_path: Path) -> None:
    import yaml

    recipe, run = tmp_path / "traces.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    result = rqat("qat", "-r", recipe, "-o", run)
    assert result.exit_code == 0, result.stderr
    told = read_json(run / NAME / "manifest.json")["results"]
    assert told["completions"] == 12
    assert told["kept"] + sum(told["dropped"].values()) == 12
    assert len(read_json_lines(run / NAME / "traces.jsonl")) == 12
    assert "Rows written by the model" in (run / "report.html").read_text()
