"""Evaluations in several processes: what one would have found, also when they are killed and go on as others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

import rqat
from rqat.contracts import Completion
from rqat.errors import RunError
from rqat.evals import harness
from rqat.evals.harness import run_task
from rqat.evals.saved import Finished, Saved
from rqat.generation.complete import Batch
from rqat.generation.engine import Engine
from rqat.generation.transformers_writer import TransformersWriter
from rqat.processes import Processes
from tests.forks import together
from tests.tiny import tiny_model, tiny_tokenizer

Known = tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]


class Lengths(rqat.Task):
    """Nine problems; correct are completions of an even number of characters."""

    def problems(self) -> list[rqat.Row]:
        return [{"prompt": "x" * (1 + 5 * index % 9), "answer": "?"} for index in range(9)]

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        return "wrong" if len(completion) % 2 else "correct"


SAMPLED = rqat.TaskOptions(max_new_tokens=8, temperature=1.0, seeds=(1, 2))
GREEDY = rqat.TaskOptions(max_new_tokens=8)


@pytest.fixture(scope="module")
def known() -> Known:
    return tiny_model(3, hidden=64), tiny_tokenizer()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LOOK_S", 0.01)


def evaluated(known: Known, options: rqat.TaskOptions, **more: Any) -> harness.Evaluation:
    return run_task(Lengths(options), "lengths", *known, batch=2, **more)


def in_forks(count: int, folder: Path, known: Known, options: rqat.TaskOptions, **more: Any) -> Any:
    """The evaluation in so many processes, their exit codes, and what the first told of its progress."""

    def work(processes: Processes) -> None:
        told: list[tuple[float, str]] = []
        found = evaluated(
            known,
            options,
            partial=folder / "samples.jsonl",
            stream=folder / "stream",
            report=lambda done, note: told.append((done, note)),
            processes=processes,
            **more,
        )
        if processes.leads:
            (folder / "found.json").write_text(json.dumps([found.results, found.samples, told]))
        else:
            assert found == harness.Evaluation({})
            assert not told

    folder.mkdir(exist_ok=True)
    codes = together(count, folder, work)
    file = folder / "found.json"
    return codes, *(json.loads(file.read_text()) if file.exists() else (None, None, None))


NAMES = ("samples.jsonl", *(f"samples-{rank}.jsonl" for rank in (1, 2, 3)))


def written(file: Path) -> list[tuple[int, int]]:
    """Seed and problem of every completion that a process has put on disk."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [(entry["seed"], index) for entry in map(json.loads, lines) for index in entry["indices"]]


def untimed(results: dict[str, Any]) -> dict[str, Any]:
    """Figures without those of time, as JSON has them."""
    kept: dict[str, Any] = json.loads(json.dumps(results))
    return {key: value for key, value in kept.items() if key not in ("seconds", "tokens_per_s", "processes")}


def engine(model: Any) -> Engine:
    return Engine(model, rows=2)


@pytest.mark.parametrize(
    ("writer", "options", "shares"),
    [  # of batches of two problems, of which the last has one, every third; of problems every third
        (TransformersWriter, GREEDY, [4, 3, 2]),
        (TransformersWriter, SAMPLED, [7, 5, 6]),
        (engine, GREEDY, [3, 3, 3]),
        (engine, SAMPLED, [6, 6, 6]),
    ],
)
def test_several_processes_find_what_one_finds(
    writer: Callable[[Any], Any], options: rqat.TaskOptions, shares: list[int], known: Known, tmp_path: Path
) -> None:
    alone = evaluated(known, options, writer=writer(known[0]))
    codes, results, samples, told = in_forks(3, tmp_path, known, options, writer=writer(known[0]))
    assert codes == [0, 0, 0]
    assert samples == alone.samples
    assert untimed(results) == untimed(alone.results)
    assert results["processes"] == 3
    streamed = [json.loads(line) for line in (tmp_path / "stream").read_text().splitlines()]
    assert sorted(streamed, key=lambda row: (row["seed"], row["index"])) == samples
    assert [len(written(tmp_path / name)) for name in NAMES[:3]] == shares
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert done[-1] == len(samples)
    assert "% correct" in told[-1][1]
    assert told[-1][1].endswith("tok/s")


@pytest.mark.parametrize(("writer", "counts"), [(TransformersWriter, (1, 4)), (engine, (1, 2))])
def test_killed_they_go_on_in_any_number(
    writer: Callable[[Any], Any],
    counts: tuple[int, ...],
    known: Known,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = evaluated(known, SAMPLED, writer=writer(known[0]))
    original = Saved.add

    def add(self: Saved, finished: Finished, seconds: float) -> None:
        original(self, finished, seconds)
        assert self._own is not None
        if self._processes.rank == 1 and self._own.path.read_text().count("\n") == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Saved, "add", add)
        codes, results, *_ = in_forks(3, tmp_path / "run", known, SAMPLED, writer=writer(known[0]))
    assert codes[1] == -signal.SIGKILL
    assert results is None
    with (tmp_path / "run" / "samples-1.jsonl").open("a") as file:
        file.write('{"backend": "transformers", "seed"')
    for count in counts:
        folder = Path(shutil.copytree(tmp_path / "run", tmp_path / f"run-{count}"))
        codes, results, samples, _ = in_forks(count, folder, known, SAMPLED, writer=writer(known[0]))
        assert codes == [0] * count
        assert samples == alone.samples
        assert untimed(results) == untimed(alone.results)
        all_files = [one for name in NAMES for one in written(folder / name)]
        assert len(all_files) == len(set(all_files)) == 18, "every completion was written once"


class Other(Processes):
    """Of two; the other one said this."""

    said: dict[str, Any]

    def gather(self, text: str = "") -> list[str]:
        return [text, json.dumps(json.loads(text) | self.said)]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"backend": "engine"}, r"in process 1 of 2 'engine' writes, in the first 'transformers'\. .*`backend: tra"),
        ({"asked": "other"}, r"process 1 of 2 has other prompts than the first\."),
    ],
)
def test_processes_that_do_other_work_are_told(
    said: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Other, "said", said, raising=False)
    writing = Saved(tmp_path / "samples.jsonl", "transformers", Other(0, 2))
    with pytest.raises(RunError, match=told):
        writing.begin([(0, Batch((0, 1), 8))], "prompts")


def test_the_time_of_several_is_that_of_the_longest(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    one = Completion(text="5", tokens=(5,), ended=True, limit=8)
    units = [(0, Batch((index,), 8)) for index in range(4)]
    for rank, (seconds, index) in enumerate([(2.0, 0), (3.0, 1)]):
        Saved(path, "engine", Other(rank, 2)).add(Finished(0, (index,), [one], ["wrong"]), seconds)
    writing = Saved(path, "engine")
    there, missing = writing.begin(units, "")
    assert there == [Finished(0, (index,), [one], ["wrong"]) for index in (0, 1)]
    assert missing == units[2:]
    assert writing.seconds == 3.0
    writing.add(Finished(0, (2,), [one], ["wrong"]), 1.5)
    assert writing.seconds == 3.5
    assert Saved(path, "transformers").begin(units, "")[1] == units


def test_what_others_do_is_told_in_sum_and_forgotten_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for rank in (1, 2):
        Saved(path, "engine", Processes(rank, 3)).tell(10 * rank, 0.5)
    first = Saved(path, "engine", Processes(0, 3))
    assert first.told() == (30, 1.0)
    (tmp_path / "samples-1.told").write_text("[2")
    Saved(path, "engine", Processes(2, 3)).tell(21, 0.0)
    assert first.told() == (31, 0.5), "what is just being written counts as it was"
    Saved(path, "engine").begin([], "")
    assert Saved(path, "engine", Processes(0, 3)).told() == (0, 0.0)
    assert Saved(None, "engine").seconds == 0
