"""Running a task: figures, seeds, and resuming after an interruption at any byte."""

import json

import pytest

import rqat
from rqat.errors import DataError
from rqat.evals import harness
from rqat.evals.grade import boxed
from rqat.evals.harness import figures, number_of_completions, run_task, scores
from tests.tiny import tiny_model, tiny_tokenizer


class Echo(rqat.Task):
    """Problems whose right answer is whatever a random model happens to say, for two of three of them."""

    def __init__(self, options=None, answers=None, count=9):
        super().__init__(options or rqat.TaskOptions(max_new_tokens=6))
        self.answers = answers or {}
        self.count = count

    def problems(self):
        return [{"prompt": "x" * (index + 1), "answer": self.answers.get(index, "?")} for index in range(self.count)]

    def grade(self, completion, answer, row):
        return "correct" if completion == answer else "unverifiable" if answer == "!" else "wrong"


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, hidden=64)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_figures_of_a_run(model, tokenizer):
    said = {s["index"]: s["completion"] for s in run_task(Echo(), "echo", model, tokenizer).samples}
    answers = {index: said[index] for index in range(6)} | {6: "!"}
    found = run_task(Echo(answers=answers), "echo", model, tokenizer, batch=4)
    results = found.results
    assert (results["correct"], results["wrong"], results["unverifiable"]) == (6, 2, 1)
    assert (results["n"], results["accuracy"], results["seeds"]) == (9, 6 / 9, [42])
    assert results["low"] < 6 / 9 < results["high"]
    assert results["interval"] == "Wilson"
    assert 0 <= results["truncated"] <= 1
    assert 1 <= results["mean_tokens"] <= 6
    assert results["generation"] == {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "batch": 4, "chat": False}
    assert results["backend"] == "transformers"
    assert len(results["prompt_hash"]) == 64
    assert [sample["index"] for sample in found.samples] == list(range(9))
    assert found.samples[8]["prompt"] == "x" * 9


def test_limit_and_seeds(model, tokenizer):
    greedy = Echo(rqat.TaskOptions(max_new_tokens=4, seeds=(1, 2, 3)))
    assert number_of_completions(greedy, None) == 9
    task = Echo(rqat.TaskOptions(max_new_tokens=8, temperature=1.0, seeds=(1, 2, 3)))
    assert number_of_completions(task, 5) == 15
    told = []
    found = run_task(task, "echo", model, tokenizer, limit=5, report=lambda done, note: told.append(done))
    assert told[-1] == 15
    assert found.results["seeds"] == [1, 2, 3]
    assert len(found.samples) == 15
    by_seed = {seed: [s["completion"] for s in found.samples if s["seed"] == seed] for seed in (1, 2, 3)}
    assert by_seed[1] != by_seed[2]
    assert run_task(task, "echo", model, tokenizer, limit=5).samples == found.samples


@pytest.mark.parametrize("verdict", ["correct", "wrong"])
def test_problems_that_are_all_alike_do_not_make_it_certain(verdict):
    samples = [{"index": index, "seed": seed, "verdict": verdict} for seed in (1, 2, 3) for index in range(4)]
    found = figures(samples, 4)
    assert found["accuracy"] == (verdict == "correct")
    assert (found["low"], found["high"]) == pytest.approx(
        (0.5101, 1) if verdict == "correct" else (0, 0.4899), abs=1e-4
    )
    assert found["interval"] == "Wilson"
    samples[0]["verdict"] = "wrong" if verdict == "correct" else "correct"
    assert figures(samples, 4)["interval"] == "bootstrap over problems"


def test_an_interrupted_evaluation_goes_on(model, tokenizer, tmp_path, monkeypatch):
    task = Echo(rqat.TaskOptions(max_new_tokens=8, temperature=1.0, seeds=(1, 2)))
    whole = run_task(task, "echo", model, tokenizer, batch=2)
    path = tmp_path / "samples.partial.jsonl"
    completed = []
    original = harness.Generator.complete

    def complete(self, prompts, *args, **named):
        if len(completed) == 7:
            raise KeyboardInterrupt
        completed.append(prompts)
        return original(self, prompts, *args, **named)

    monkeypatch.setattr(harness.Generator, "complete", complete)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, "echo", model, tokenizer, batch=2, partial=path)
    assert len(path.read_text().splitlines()) == 7
    data = path.read_bytes()
    for cut in (len(data), len(data) - 1, len(data) - 40, len(data) // 2, 0):
        path.write_bytes(data[:cut])
        kept = data[:cut].count(b"\n")
        completed.clear()
        monkeypatch.setattr(
            harness.Generator, "complete", lambda *args, **named: completed.append(1) or original(*args, **named)
        )
        again = run_task(task, "echo", model, tokenizer, batch=2, partial=path)
        assert again.samples == whole.samples
        assert len(completed) == 10 - kept
        assert len(path.read_bytes().splitlines()) == 10


def test_long_prompts_are_refused_before_anything_is_generated(tokenizer, monkeypatch):
    monkeypatch.setattr(harness.Generator, "complete", lambda *args: pytest.fail("generated"))
    with pytest.raises(DataError, match="2 of 9 prompts do not fit"):
        run_task(Echo(), "echo", tiny_model(0, hidden=64, context=8), tokenizer)


def test_new_tokens_are_cut_to_the_context_with_a_note(tokenizer):
    found = run_task(Echo(), "echo", tiny_model(0, hidden=64, context=12), tokenizer)
    assert found.results["notes"] == [
        "The model's context holds 12 tokens: "
        "completions end after 3 tokens, all that the longest prompt leaves; 6 were asked for."
    ]
    assert found.samples[8]["tokens"] <= 3


def test_no_problems_is_an_error(model, tokenizer):
    with pytest.raises(DataError, match="'echo' has no problems"):
        run_task(Echo(count=0), "echo", model, tokenizer)


def test_scores_are_means_over_seeds():
    rows = [(0, 1, "correct"), (1, 1, "wrong"), (0, 2, "wrong"), (1, 2, "wrong")]
    samples = [{"index": index, "seed": seed, "verdict": verdict} for index, seed, verdict in rows]
    assert scores(samples) == [0.5, 0.0]
    found = figures(samples, 2)
    assert found["accuracy"] == 0.25
    assert [each["correct"] for each in found["per_seed"]] == [1, 0]


def test_graders_of_plugins_see_the_completion(model, tokenizer):
    class Boxed(Echo):
        def grade(self, completion, answer, row):
            assert boxed(completion) is None
            return "wrong"

    assert run_task(Boxed(count=2), "echo", model, tokenizer).results["wrong"] == 2


def test_samples_are_on_disk_as_they_come_and_the_accuracy_so_far_is_told(model, tokenizer, tmp_path):
    path, seen = tmp_path / "samples.jsonl", []

    def report(done, note):
        seen.append((done, len(path.read_text().splitlines()), note))

    found = run_task(Echo(), "echo", model, tokenizer, batch=3, stream=path, report=report)
    assert {(done, lines) for done, lines, _ in seen} == {(3, 0), (6, 3), (9, 6)}
    assert any(note.startswith("0.0 % correct (0 to 56)  ") for *_, note in seen)
    assert sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["index"]) == found.samples


def test_a_system_prompt_and_settings_of_the_template_are_the_tasks(model):
    words = tiny_tokenizer()
    words.chat_template = "{{ messages[0].content }}|{{ thinking }}|{{ messages[-1].content }}:"
    options = rqat.TaskOptions(max_new_tokens=2, system="Be brief.", chat_template_kwargs={"thinking": False})
    found = run_task(Echo(options), "echo", model, words, limit=2)
    assert [sample["prompt"] for sample in found.samples] == ["Be brief.|False|x:", "Be brief.|False|xx:"]


class Thinker(Echo):
    def grade(self, completion, answer, row):
        return "wrong" if completion.startswith("<think>") else "correct"


def test_thinking_that_the_prompt_opened_and_nothing_closed_reaches_the_grader(model):
    words = tiny_tokenizer()
    words.chat_template = "{{ messages[-1].content }}<think>"
    found = run_task(Thinker(), "thinker", model, words, limit=2)
    assert {sample["verdict"] for sample in found.samples} == {"wrong"}
    assert not found.samples[0]["completion"].startswith("<think>")
    assert {sample["verdict"] for sample in run_task(Thinker(), "thinker", model, tiny_tokenizer()).samples} == {
        "correct"
    }
