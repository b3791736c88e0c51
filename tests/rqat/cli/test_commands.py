"""`quantize`, `qat`, `plan`, `eval` and `generate` on a tiny model, and what they leave behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rqat.cli.app import build
from rqat.cli.quantize import _calibration
from rqat.figures import size
from rqat.run_lock import only_one
from tests.tiny import save_tiny

RECIPE = """name: mine
model: {model}
scheme: w4g64
quantize: rtn
evaluate:
  - {{task: arith, limit: 3, max_new_tokens: 8}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(model=model))
    return path


def rqat(*arguments: object) -> Result:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_finished_run_tells_of_itself(recipe: Path, tmp_path: Path) -> None:
    """In its card, its report and its table; telling does not make the checkpoint another."""
    run = tmp_path / "run"
    assert rqat("qat", "--recipe", recipe, "-o", run).exit_code == 0
    (step,) = run.glob("*-export")
    card = (step / "model" / "README.md").read_text()
    assert "| arith | 3 | " in card
    assert "model-index:" in card
    assert "damp" not in card, "of another quantizer"
    assert "clip: minmax" in card, "a plugin's default"
    assert str(tmp_path) not in card
    assert rqat("runs", "verify", run).exit_code == 0
    assert rqat("push", run, "me/mine", "--dry-run").exit_code == 0
    assert "| rtn " in rqat("compare", run).stdout
    again = rqat("qat", "--recipe", run / "recipe.yaml", "-o", run)
    assert "Finished already" in again.stderr
    assert (step / "model" / "README.md").read_text() == card
    # A task that comes later is told of in the card of a checkpoint that is kept.
    recipe.write_text(recipe.read_text() + "  - {task: arith, limit: 2, max_new_tokens: 9, steps: [1, 2]}\n")
    assert rqat("qat", "--recipe", recipe, "-o", run).exit_code == 0
    card = (step / "model" / "README.md").read_text()
    assert "| arith | 3 | " in card
    assert "| arith (2) | 2 | " in card
    assert rqat("runs", "verify", run).exit_code == 0


def test_runs_are_listed_with_their_state_and_last_figures(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    assert rqat("qat", recipe, "-o", runs / "done").exit_code == 0
    assert rqat("qat", recipe, "-o", runs / "half", "--until", "quantize-rtn").exit_code == 0
    asked = json.loads(rqat("runs", "ls", runs / "half", "--json").stdout)[0]
    assert (asked["state"], asked["steps"], asked["planned"] > 1) == ("stopped", 1, True)  # as far as was asked
    (runs / "half" / "summary.json").unlink()
    partial = runs / "half" / "02-train-kd.partial"
    partial.mkdir()
    (partial / "training.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    (runs / "other").mkdir()
    listed = rqat("runs", "ls", runs)
    assert listed.exit_code == 0, listed.stderr
    assert "finished" in listed.stdout
    assert "02-train-kd: step 2, loss 0.25" in listed.stdout
    found = {Path(one["run"]).name: one for one in json.loads(rqat("runs", "ls", runs, "--json").stdout)}
    assert set(found) == {"done", "half"}
    assert (found["done"]["state"], found["half"]["state"]) == ("finished", "stopped")
    assert "rtn 0.0 % on arith" in found["done"]["last"]
    assert found["half"]["steps"] == 1
    assert found["done"]["bytes"] == sum(path.stat().st_size for path in (runs / "done").rglob("*") if path.is_file())
    with only_one(runs / "half"):
        assert json.loads(rqat("runs", "ls", runs / "half", "--json").stdout)[0]["state"] == "running"
    monkeypatch.chdir(tmp_path)
    assert json.loads(rqat("runs", "--json").stdout)[0]["run"].startswith("runs")
    nothing = rqat("runs", "ls", tmp_path / "none")
    assert nothing.exit_code == 2
    assert "There is no folder" in nothing.stderr


def test_runs_verify_names_what_was_changed(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert rqat("qat", "--recipe", recipe, "-o", run, "--until", "quantize-rtn").exit_code == 0
    sound = rqat("runs", "verify", run)
    assert sound.exit_code == 0, sound.stderr
    assert "01-quantize-rtn: sound" in sound.stderr
    config = run / "01-quantize-rtn" / "config.json"
    config.write_text(config.read_text() + " ")
    changed = rqat("runs", "verify", run)
    assert changed.exit_code == 2
    assert "01-quantize-rtn: config.json changed since it was written" in changed.stderr
    assert "1 of 1 finished steps are not what was written" in changed.stderr
    nothing = rqat("runs", "verify", tmp_path)
    assert nothing.exit_code == 2
    assert "holds no finished step" in nothing.stderr


def test_plan_shows_every_step_default_owner_and_size(recipe: Path) -> None:
    result = rqat("plan", recipe)
    assert result.exit_code == 0, result.stderr
    for words in (
        "01-quantize-rtn",
        "(rqat_rtn, rqat ",
        "indivisible=error",
        "02-export",
        "memory",
        "limit=3",
        "clip=minmax",
    ):
        assert words in result.stdout
    assert "lm_head shares the embedding" in result.stderr


def test_plan_as_json_holds_what_the_text_shows(recipe: Path) -> None:
    found = json.loads(rqat("plan", recipe, "--set", "scheme=w2g32", "--json").stdout)
    assert found["recipe"]["scheme"] == "w2g32"
    assert [step["stage"] for step in found["steps"]] == ["quantize", "export", "evaluate", "evaluate"]
    assert found["steps"][0]["parts"]["quantizer"]["module"] == "rqat_rtn"
    assert found["steps"][0]["memory_bytes"] > 0
    assert {finding["level"] for finding in found["findings"]} == {"note"}


def test_plan_of_several_processes_on_a_cpu_says_what_they_take_together(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rqat.cli.plan.likely_device", lambda: "cpu")
    several = ("plan", recipe, "--set", "evaluate=[{task: arith, limit: 64}]", "--processes", "2")
    steps = {step["name"]: step for step in json.loads(rqat(*several, "--json").stdout)["steps"]}
    quantize, evaluate = steps["01-quantize-rtn"], steps["03-evaluate-arith-bf16"]
    assert quantize["memory_together_bytes"] == quantize["memory_bytes"]
    assert evaluate["memory_together_bytes"] == 2 * evaluate["memory_bytes"]
    together, each = (size(evaluate[f"memory_{what}bytes"]) for what in ("together_", ""))
    shown = rqat(*several).stdout
    assert f"03-evaluate-arith-bf16   about {together} memory, {each} in each of 2 processes, " in shown
    assert f"01-quantize-rtn   about {size(quantize['memory_bytes'])} memory, " in shown


def test_plan_with_errors_is_2_and_shows_the_plan_all_the_same(recipe: Path) -> None:
    result = rqat("plan", recipe, "--set", "model=./nowhere")
    assert result.exit_code == 2
    assert "01-quantize-rtn" in result.stdout
    assert "./nowhere" in result.stderr


def test_plan_imports_no_torch(recipe: Path) -> None:
    code = f"""
import sys
sys.argv = ["rqat", "plan", {str(recipe)!r}]
from rqat.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not {{"torch", "transformers", "numpy"}} & set(sys.modules)
"""
    path = "import sys; sys.path[:0] = " + repr([entry for entry in sys.path if entry])
    done = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_quantize_writes_a_folder_that_transformers_loads(model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    arguments = ("quantize", model, "--method", "rtn", "--scheme", "w4g64", "--skip", "*.down_proj", "-o", out)
    result = rqat(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["scheme"] == "w4g64"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "work was left behind"
    loaded = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.tensor([[5, 6, 7]])).logits).all()

    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = rqat(*arguments)
    assert again.exit_code == 0
    assert "finished already" in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before

    other = rqat("quantize", model, "--method", "rtn", "--scheme", "w2g64", "-o", out)
    assert other.exit_code == 2
    assert "scheme.bits: 4 there, 2 now" in other.stderr


def test_commas_within_brackets_do_not_end_an_option() -> None:
    found = _calibration("jsonl:path=a.jsonl,fields={prompt: q, completion: a}", 8, 64, 0)
    assert found == {
        "source": "jsonl",
        "path": "a.jsonl",
        "fields": {"prompt": "q", "completion": "a"},
        "samples": 8,
        "tokens": 64,
        "seed": 0,
    }
    parts = _calibration("mix:parts=[{source: arith, steps: 2}, {source: gsm8k}]", 8, 64, 0)["parts"]
    assert parts == [{"source": "arith", "steps": 2}, {"source": "gsm8k"}]


def test_calibration_data_may_be_a_plain_file(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"Line {n} says that {n} + {n} = {2 * n}." for n in range(40)))
    arguments = ["--scheme", "w3g64", "--samples", 4, "--tokens", 64, "--option", "damp=0.02", "-o", tmp_path / "out"]
    result = rqat("quantize", model, "--method", "gptq", "--calibration", text, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)["steps"]) == ["01-calibrate", "02-quantize-gptq", "03-export"]


def test_qat_runs_shows_the_table_and_is_then_finished(recipe: Path, tmp_path: Path) -> None:
    result = rqat("qat", "--recipe", recipe, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for words in ("accuracy", "95 % interval", "bf16", "rtn", "rtn against bf16"):
        assert words in result.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    again = rqat("qat", "--recipe", recipe, "-o", tmp_path / "run", "--json")
    assert "Finished already" in again.stderr
    assert set(json.loads(again.stdout)["variants"]) == {"bf16", "rtn"}
    changed = rqat("qat", "--recipe", recipe, "-o", tmp_path / "run", "--set", "scheme=w2g64")
    assert changed.exit_code == 0
    assert "Set aside: 01-quantize-rtn is now .old/1/01-quantize-rtn" in changed.stderr
    assert "evaluate-arith-bf16" in changed.stderr.partition("Done already: ")[2]
    assert (
        rqat("eval", "arith", tmp_path / "run" / "01-quantize-rtn", "--limit", 2, "-o", tmp_path / "e").exit_code == 0
    )
    assert (
        rqat("eval", "arith", tmp_path / "run" / "02-export" / "model", "--limit", 2, "-o", tmp_path / "e").exit_code
        == 0
    )


def test_eval_writes_results_and_samples(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--limit", 3, "--batch", 2, "--set", "max_new_tokens=8", "--set", "temperature=0.6"]
    result = rqat("eval", "arith", model, *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n"] == 3
    assert found["generation"]["temperature"] == 0.6
    [folder] = Path("results").iterdir()
    assert folder.name.startswith("arith-")
    assert str(folder) in result.stderr
    assert json.loads((folder / "results.json").read_text()) == found
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3


def test_eval_says_what_stays_in_one_process(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqat.pipeline.check_processes", lambda count, device: None)
    result = rqat(
        "eval", "arith", model, "--limit", 1, "--set", "max_new_tokens=2", "--processes", 2, "-o", tmp_path / "e"
    )
    assert result.exit_code == 0, result.stderr
    assert "arith stays in one process; shared out is what rqat writes, in more than a batch.\n" in result.stderr
    assert "processes" not in json.loads((tmp_path / "e" / "results.json").read_text())


def test_eval_runs_several_tasks_and_tells_the_cost_before(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 3)
    for task in ("math500", "gsm8k"):
        Path(task).mkdir()
        Path(task, "test.jsonl").write_text('{"question": "1 + 1?", "problem": "1?", "answer": "#### 2"}\n' * 3)
    monkeypatch.setenv("RQAT_DATA", str(tmp_path))
    result = rqat("eval", "gsm8k,math500", model, "--limit", 2, "--set", "max_new_tokens=4", "-o", "found", "--json")
    assert result.exit_code == 0, result.stderr
    told = "gsm8k: 2 problems, each 3 times (one per seed): 6 completions of at most 4 tokens, 24 in all."
    assert f"{told} --greedy asks once." in result.stderr
    assert result.stderr.index(told) < result.stderr.index("evaluate gsm8k")
    found = json.loads(result.stdout)
    assert [each["task"] for each in found] == ["gsm8k", "math500"]
    assert found[0]["pass_at_k"].keys() == {"1", "2", "3"}
    assert found[0]["pass_at_k"]["1"] == found[0]["accuracy"]
    assert "100.0 % of the completions were cut off after 4 tokens; --max-new-tokens 16 allows more" in result.stderr
    for task in ("gsm8k", "math500"):
        assert len(Path("found", task, "samples.jsonl").read_text().splitlines()) == 6
        assert json.loads(Path("found", task, "results.json").read_text())["task"] == task


def test_presets_are_options_by_one_word(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--limit", 1, "--json", "--set", "max_new_tokens=4"]
    greedy = json.loads(rqat("eval", "arith", model, "--greedy", *tiny, "-o", "greedy").stdout)
    assert (greedy["generation"]["temperature"], greedy["seeds"]) == (0.0, [42])
    paper = rqat("eval", "arith", model, "--paper", *tiny, "-o", "paper")
    assert "each 3 times" in paper.stderr
    found = json.loads(paper.stdout)
    assert (found["generation"]["temperature"], found["generation"]["top_p"]) == (0.6, 0.95)
    assert (found["seeds"], found["generation"]["max_new_tokens"]) == ([42, 43, 44], 4)
    both = rqat("eval", "arith", model, "--greedy", "--paper")
    assert both.exit_code == 2
    assert "--greedy and --paper do not go together" in both.stderr


def test_an_unknown_choice_is_told_in_plain_words(model: Path) -> None:
    result = rqat("eval", "arith", model, "--backend", "vllm")
    assert result.exit_code == 2
    assert "'vllm' is not one of 'auto', 'transformers', 'packed'" in result.stderr
    assert "Value error" not in result.stderr


def test_tasks_lists_what_there_is() -> None:
    result = rqat("tasks")
    assert result.exit_code == 0
    assert "gsm8k" in result.stdout
    assert "3 times, temperature 0.6, up to 32,768 tokens" in result.stdout
    assert "lm-eval" in result.stderr
    found = {each["name"]: each for each in json.loads(rqat("tasks", "--json").stdout)}
    assert found["math500"]["options"]["seeds"] == [42, 43, 44]


def test_grade_writes_a_verdict_beside_every_row(tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    rows = [
        {"said": r"so \boxed{1/2}", "right": "0.5", "id": 7},
        {"said": r"\boxed{5 km}", "right": r"5\text{ m}"},
        {"said": "I do not know\nand stop", "right": 5},
        {"said": "18 dollars", "right": 18},
        {"said": None, "right": "5"},
        {"said": "5", "right": ""},
        {"said": r"\boxed{2, 1}", "right": [1, 2]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = rqat("grade", file, "--response-field", "said", "--gold-field", "right")
    assert result.exit_code == 0, result.stderr
    graded = [json.loads(line) for line in (tmp_path / "said.graded.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, False, False, True, False, None, True]
    assert [row["reason"] for row in graded][1:3] == ["different numbers", "no answer"]
    assert graded[0]["id"] == 7
    assert "3 of 7, 42.9 %" in result.stdout
    boxed = rqat("grade", file, "--response-field", "said", "--gold-field", "right", "--form", "boxed", "--json")
    assert json.loads(boxed.stdout) == {
        "rows": 7, "correct": 2, "wrong": 5, "unverifiable": 0, "accuracy": 2 / 7, "no_answer": 4
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("", (), "holds no rows"),
        ('{"completion": "5"}\n', (), "said.jsonl:1: no field 'answer'; there are 'completion'"),
        ('{"completion": "5", "answer": "5"}\n[1]\n', (), "said.jsonl:2: a list, no object"),
        ('{"completion": "5", "answer": "5"}\n{\n', (), "said.jsonl:2: not JSON"),
        ('{"completion": "5", "answer": "5"}\n', ("--form", "box"), "--form: 'box' is none"),
        ('{"completion": "5", "answer": "5"}\n', ("-o", "said.jsonl"), "is the file that is read"),
    ],
)
def test_grade_refuses_in_one_line(
    text: str, arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("said.jsonl").write_text(text)
    result = rqat("grade", "said.jsonl", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["said.jsonl"]


def test_generate_talks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "tiny", 3)
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ 'assistant: ' }}"
    (folder / "chat_template.jinja").write_text(template)
    words = ["generate", str(folder), "-c", "--max-new-tokens", "6", "--system", "Be brief."]
    result = CliRunner().invoke(build(), words, input="one\ntwo\n\nthree\n")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("> ") == 3
    # A pipe, which is read ahead of a turn: nothing of the next turns may get lost with it.
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n\n")
    os.close(writing)
    with open(reading, encoding="utf-8", errors="surrogateescape") as pipe:  # as Python opens it where LANG is C
        monkeypatch.setattr(sys, "stdin", pipe)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        monkeypatch.setattr(sys, "stderr", told := io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        build()(words, standalone_mode=False)
        monkeypatch.undo()
    told.seek(0)
    assert told.read().count("> ") == 3
    once = rqat("generate", folder, "one", "--max-new-tokens", 6, "--system", "Be brief.")
    assert result.stdout.startswith(once.stdout)
    refused = rqat("generate", folder, "-c", "--no-chat")
    assert refused.exit_code == 2
    assert "-c and --no-chat" in refused.stderr


def test_generate_reads_standard_input_as_files_are_read(model: Path) -> None:
    asked = ["generate", str(model), "-", "--max-new-tokens", "6"]
    plain, marked = (CliRunner().invoke(build(), asked, input=text) for text in (b"2 + 3 =", b"\xef\xbb\xbf2 + 3 ="))
    assert plain.exit_code == 0, plain.stderr
    assert marked.stdout == plain.stdout


def test_generate_streams_an_answer_that_a_seed_repeats(model: Path) -> None:
    arguments = ("generate", model, "2 + 3 =", "--max-new-tokens", 12, "--temperature", 0.8, "--seed", 3)
    first = rqat(*arguments)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.strip()
    assert "Loading the model ...\n" in first.stderr
    assert rqat(*arguments).stdout == first.stdout
    assert rqat(*arguments[:-1], 4).stdout != first.stdout


def test_an_interrupted_evaluation_resumes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rqat.evals.saved import Saved

    options = ["--limit", 4, "--batch", 1, "--set", "max_new_tokens=4", "-o", tmp_path / "found"]
    written = []
    append = Saved.add

    def add(self: object, *arguments: object) -> None:
        append(self, *arguments)  # type: ignore[arg-type]
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Saved, "add", add)
        assert rqat("eval", "arith", model, *options).exit_code == 130
    assert not (tmp_path / "found").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Saved, "add", lambda self, *arguments: written.append(append(self, *arguments)))
        assert rqat("eval", "arith", model, *options).exit_code == 0
    assert len(written) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found"]
    assert len((tmp_path / "found" / "samples.jsonl").read_text().splitlines()) == 4
