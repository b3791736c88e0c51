"""Tasks of lm-eval by their own names: found without its index, read from files, refused in one line."""

import json
import time

import pytest

from rqat.contracts import TaskOptions
from rqat.errors import DataError, UnknownName
from rqat.evals.lm_eval_tasks import _fitting, _generation, find_task, prepare_task, run_lm_eval_task
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


def test_git_does_not_complain_where_there_is_no_repository(model, gsm8k, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    run_lm_eval_task("gsm8k", model, tiny_tokenizer(), TaskOptions(data=str(gsm8k), max_new_tokens=4), limit=1)
    assert "git" not in capfd.readouterr().err


@pytest.mark.parametrize("lacks", ["question", "answer"])
def test_rows_of_other_fields_are_told_before_the_model_is_loaded(gsm8k, lacks):
    for file in gsm8k.iterdir():
        file.write_text("".join(json.dumps({key: row[key] for key in row if key != lacks}) + "\n" for row in GSM8K))
    with pytest.raises(DataError, match=f"a row lacks a field that 'gsm8k' asks with: '{lacks}' is undefined"):
        prepare_task("gsm8k", TaskOptions(data=str(gsm8k)))


def test_temperature_0_is_greedy_whatever_a_task_says():
    assert _generation({"temperature": 0.0, "top_p": 0.9}) == {"do_sample": False, "temperature": 0.0}
    assert _generation({"temperature": 0.5})["do_sample"] is True
    assert _generation({"top_p": 0.9}) == {}


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


def test_answers_that_are_rated_without_the_beginning_of_their_prompt_are_told():
    class Rates:
        max_length = 8

        def __init__(self, **settings):
            pass

        def _loglikelihood_tokens(self, requests, disable_tqdm=False):
            return [0.0] * len(requests)

    rates = _fitting(Rates)()
    requests = [(("", ""), [1] * prompt, [2] * 3) for prompt in (5, 6, 7)]
    assert rates._loglikelihood_tokens(requests[:2], disable_tqdm=True) == [0.0] * 2
    assert rates.notes == []
    rates._loglikelihood_tokens(requests)
    assert rates.notes == [
        "1 of 3 prompts with an answer to be rated are longer than the context of 8 tokens; they lose their beginning."
    ]


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


FAMILY = """\
{name}
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["A", "B"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Two tasks with a tag, a group without a figure of its own and one with, where lm-eval's own tasks would lie."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks" / "pair"
    folder.mkdir(parents=True)
    for number, task in enumerate(("pair_one", "pair_two")):
        data = folder / f"{task}.json"
        rows = [{"question": f"{task} {index}?", "answer": index % 2} for index in range(3 + number)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{task}.yaml").write_text(FAMILY.format(name="tag: pair", task=task, data=data))
    (folder / "plain.yaml").write_text("group: pair_plain\ntask: [pair_one, pair_two]\n")
    mean = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    (folder / "mean.yaml").write_text(f"group: pair_mean\ntask: [pair_one, pair_two]\n{mean}")
    needs = FAMILY.format(name="tag: needy", task="needy", data=data).replace("{{question}}", "?")
    (folder / "needy.yaml").write_text(f"{needs}process_docs: !function needy.process\n")
    (folder / "needy.py").write_text("import langdetect_of_nobody\n\ndef process(rows):\n    return rows\n")
    monkeypatch.setattr("rqat.evals.lm_eval_tasks._root", lambda: tmp_path / "tasks")
    return tmp_path / "tasks"


@pytest.mark.parametrize("name", ["pair", "pair_plain", "pair_mean", "pair_one"])
def test_tags_and_groups_have_the_figures_that_lm_eval_gives(model, family, name):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = run_lm_eval_task(name, model, tiny_tokenizer(), batch=2)
    lm = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=2)
    manager = TaskManager(include_path=str(family), include_defaults=False)
    alone = lm_eval.simple_evaluate(model=lm, tasks=[name], bootstrap_iters=0, task_manager=manager)["results"]
    if name in ("pair_one", "pair_mean"):
        assert found.results["accuracy"] == alone[name]["acc,none"]
    else:
        accuracies = {task: alone[task]["acc,none"] for task in ("pair_one", "pair_two")}
        assert found.results["metrics"] == {f"{task}/acc,none": value for task, value in accuracies.items()}
        assert found.results["accuracy"] == pytest.approx(sum(accuracies.values()) / 2)
        assert found.results["metric"] == "mean over 2 tasks"
    assert found.results["n"] == len(found.samples) == (3 if name == "pair_one" else 7)
    assert found.results["low"] <= found.results["accuracy"] <= found.results["high"]


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus", "mbpp_instruct"])
def test_tasks_that_run_programs_are_refused_before_any_work(name):
    with pytest.raises(DataError, match=f"'{name}' runs programs that a model has written") as caught:
        prepare_task(name)
    assert "livecodebench" in caught.value.hint


def test_a_missing_package_is_one_line_before_any_work(family, monkeypatch):
    with pytest.raises(DataError, match="'needy' needs the package 'langdetect_of_nobody'") as caught:
        prepare_task("needy")
    assert caught.value.hint == "Install it: pip install langdetect_of_nobody"
    text = "try:\n    import langdetect_of_nobody\nexcept ImportError:\n    raise ImportError('Please ...')\n"
    (family / "pair" / "needy.py").write_text(text)
    with pytest.raises(DataError, match="'needy' needs the package 'langdetect_of_nobody', which is not installed"):
        prepare_task("needy")
    needs = ["langdetect-of-nobody>=1; extra == 'ifeval'"]
    monkeypatch.setattr("rqat.evals.lm_eval_tasks.requires", lambda name: needs)
    for own, hint in (({"gguf", "ifeval"}, "pip install 'rqat[ifeval]'"), ({"vllm"}, "pip install 'lm_eval[ifeval]'")):
        monkeypatch.setattr("rqat.evals.lm_eval_tasks._own_extras", lambda own=own: own)
        with pytest.raises(DataError) as caught:
            prepare_task("needy")
        assert caught.value.hint == hint
