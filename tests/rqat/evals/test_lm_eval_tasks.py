"""Tasks of lm-eval by their own names: found without its index, read from files, refused in one line."""

import json
import time

import pytest

from rqat.contracts import TaskOptions
from rqat.errors import DataError, UnknownName
from rqat.evals.lm_eval_tasks import find_task, run_lm_eval_task
from tests.tiny import tiny_model, tiny_tokenizer

# Two rows of GSM8K: MIT licence, Copyright (c) 2021 OpenAI (github.com/openai/grade-school-math).
GSM8K = [
    {
        "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  "
        "How many bolts in total does it take?",
        "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\n"
        "So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
    },
] * 6


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, hidden=64, context=4096)


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return folder


def test_a_task_reads_files_in_place_of_the_hub(model, gsm8k):
    options = TaskOptions(data=str(gsm8k), max_new_tokens=4)
    found = run_lm_eval_task("gsm8k", model, tiny_tokenizer(), options, limit=2, batch=2)
    assert found.results["task"] == "gsm8k"
    assert found.results["n"] == 2
    assert found.results["metric"] == "exact_match,strict-match"
    assert found.results["generation"]["max_gen_toks"] == 4
    assert len(found.samples) == 2
    assert found.samples[0]["prompt"].count("Question:") == 6
    assert found.samples[0]["answer"].endswith("#### 3")


def test_one_file_is_not_enough_for_a_task_with_examples(model, gsm8k):
    options = TaskOptions(data=str(gsm8k / "test.jsonl"))
    with pytest.raises(DataError, match=r"needs the splits test and train; .* is one file"):
        run_lm_eval_task("gsm8k", model, tiny_tokenizer(), options)
    (gsm8k / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"lacks the split train\.jsonl for 'gsm8k'"):
        run_lm_eval_task("gsm8k", model, tiny_tokenizer(), TaskOptions(data=str(gsm8k)))
    with pytest.raises(DataError, match="is no file or folder"):
        run_lm_eval_task("gsm8k", model, tiny_tokenizer(), TaskOptions(data=str(gsm8k / "nowhere")))


def test_missing_data_is_one_line(model):
    with pytest.raises(DataError, match="The data of 'gsm8k' is neither in the cache nor reachable") as caught:
        run_lm_eval_task("gsm8k", model, tiny_tokenizer())
    assert "--data" in caught.value.hint


def test_prompts_beyond_the_context_are_refused(gsm8k):
    options = TaskOptions(data=str(gsm8k), max_new_tokens=4)
    with pytest.raises(DataError, match=r"longest prompt has \d+ tokens; the model's context holds 64"):
        run_lm_eval_task("gsm8k", tiny_model(3, hidden=64, context=64), tiny_tokenizer(), options, limit=2)


def test_unknown_names_are_told_within_seconds():
    start = time.monotonic()
    with pytest.raises(UnknownName) as caught:
        find_task("gsm9k", ["arith", "math500"])
    assert time.monotonic() - start < 30  # building the index takes longer than that on a busy machine
    text = str(caught.value)
    assert "'gsm9k' is not a task. Known: arith, math500." in text
    assert "the nearest is 'gsm8k'" in text
    assert len(text) < 400


@pytest.mark.parametrize("name", ["gsm8k", "hellaswag", "mmlu", "arc_easy", "aime24", "minerva_math500"])
def test_known_names_are_found(name):
    assert f"{name}" in find_task(name).read_text(encoding="utf-8")
