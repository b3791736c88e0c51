"""What new users met in their first hours: the words they get now, in the terms of the command they gave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.cli.options import recipes_beginning
from tests.tiny import save_tiny

RECIPE = """name: mine
model: {model}
scheme: w4g64
calibration: arith
quantize: gptq
train:
  - {{objective: kd, data: arith, steps: 4, batch: 4, max_tokens: 96}}
evaluate: [{{task: arith, limit: 3}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of four blocks: more layers of a kind than are named one by one."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=4)


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that would run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = Path("mine.yaml")
    path.write_text(RECIPE.format(model=model))
    return path


def told(*arguments: object, code: int = 2) -> str:
    """What a command writes on stderr."""
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.stderr


# ----------------------------------------------------------------------------------- commands speak of their own flags


def test_many_layers_are_one_line_with_a_pattern_a_count_and_a_group_that_fits(model: Path, tmp_path: Path) -> None:
    err = told("quantize", model, "--method", "rtn", "--scheme", "w3g96", "-o", tmp_path / "x")
    [line] = [line for line in err.splitlines() if line.startswith("Error")]
    assert line == (
        "Error: --scheme: 28 layers have input features that groups of 96 do not divide: 4 each of *.q_proj, *.k_proj, "
        "*.v_proj, *.o_proj, *.gate_proj, *.up_proj (128 input features), 4 of *.down_proj (256 input features)."
    )
    assert "Hint: Use a group of 128, 64, 32, 16, 8, one scale per row (-row), or give --skip-indivisible." in err
    assert "quantize.indivisible" not in err


def test_layers_left_out_are_patterns_with_counts(model: Path, tmp_path: Path) -> None:
    plan = ["plan", _recipe(tmp_path, model), "--set", "quantize.skip=['*.down_proj', '*.0.mlp.up_proj']"]
    err = told(*plan, code=0)
    assert "5 linear layers stay as they are: model.layers.0.mlp.up_proj (256, 128), 4 of *.down_proj (256 " in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--option", "damp=x", "--method", "gptq", "--calibration", "arith"], "--option damp: 'x' is not a number."),
        (["--option", "dump=1", "--method", "gptq", "--calibration", "arith"], "--option dump: 'dump' is not a key"),
        (["--skip", "*.nope"], "--skip: '*.nope' matches no linear layer"),
        (["--method", "gptq"], "--method: 'gptq' looks at data; give --calibration SOURCE."),
        (
            ["--method", "gptq", "--calibration", "arith", "--tokens", "9999"],
            "--tokens: 9999 tokens, but the model's context is",
        ),
        (["--method", "gptq", "--calibration", "rows.xls"], "--calibration: 'rows.xls' is not a source."),
    ],
)
def test_quantize_names_its_flags(model: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    method = [] if "--method" in arguments else ["--method", "rtn"]
    err = told("quantize", model, "--scheme", "w4g64", "-o", tmp_path / "x", *method, *arguments)
    assert says in err
    assert not re.search(r"quantize\.\w", err)


def test_too_few_rows_are_told_in_the_flags_of_the_command(model: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "a few words"}\n' * 3)
    err = told(
        *("quantize", model, "--method", "gptq", "--scheme", "w4g64", "-o", tmp_path / "x"),
        *("--calibration", tmp_path / "few.jsonl", "--samples", "64", "--tokens", "64"),
    )
    assert "Ask for fewer (--samples, --tokens) or add data." in err


# ------------------------------------------------------------------------------------------------- what plan says


def _recipe(folder: Path, model: Path) -> Path:
    path = folder / "mine.yaml"
    path.write_text(RECIPE.format(model=model))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("calibration=null", "add `calibration: {source: ...}`"),
        ("quantize.method=awq calibration=null", "--set quantize.method: 'awq' looks at data; add `calibration:"),
        ("train.0.data=rows.jsonl", "jsonl.path: there is no file 'rows.jsonl'"),
        ("train.0.data=rows.xls", "'rows.xls' is not a source. Known: arith"),
        ("train.0.data=rows.xls", "Files that can be named here end in .jsonl, .json, .csv, .tsv, .parquet, .txt"),
        ("train.0.data=$NOWHERE/rows.jsonl", "'$NOWHERE/rows.jsonl' ($NOWHERE is not set)"),
        ("train.0.data=$HERE/rows.jsonl", "'$HERE/rows.jsonl' (/some/where/rows.jsonl)"),
        ("model=$HERE/model", "The model folder '/some/where/model' does not exist"),
        ("model=$NOWHERE/model", "The model folder '$NOWHERE/model' ($NOWHERE is not set) does not exist"),
        ("model=~/no-such-model", "'/home/me/no-such-model' does not exist"),
        ("train.0.lr=1000", "--set train.0.lr: 1000: one step would move weights, most of which are below 0.1"),
        (
            "train.0.lr=2 train.0.lr_in=size",
            "lr: 2: one step would move weights, as a share of their size, by up to that much. Usual are 5e-4 to 1e-2.",
        ),
        ("train.0.scale_lr=2", "--set train.0.scale_lr: 2: one step would move scales"),
        ("train.0.gate={pass_rate: 1, signal: 1}", "no model can pass: where 1 of the prompts have a wrong completion"),
        ("train.0.gate={pass_rate: 0.8, signal: 0.9}", "at most 0.775 are correct, and pass_rate asks for 0.8"),
        ("evaluate=[{task: arith, seeds: [1, 2, 1], temperature: 1}]", "seeds: 1 stands there twice; name each run's"),
        ("evaluate=[{task: math500, seeds: []}]", "seeds: there is none; name each run's seed once"),
        ("evaluate=[{task: math500, temperature: -1}]", "temperature: -1.0: has to be 0 or more."),
        ("evaluate=[{task: arith, top_p: 2}]", "top_p: 2.0: has to be from 0 to 1."),
        ("evaluate=[{task: kl, rows: []}]", "rows: []: has to be a list or a mapping of 1 or more."),
    ],
)
def test_plan_refuses_in_one_line(recipe: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str) -> None:
    monkeypatch.setenv("HERE", "/some/where")
    monkeypatch.setenv("HOME", "/home/me")
    changes = change.split(" ") if "calibration" in change or "lr_in" in change else [change]
    err = told("plan", recipe, *(word for one in changes for word in ("--set", one)))
    assert says in err
    assert "--calibration" not in err  # which `plan` does not have
    assert "--set train.0.data train.0.data" not in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.0.task=arith", "train.0.task: 'kd' is not trained on rewards: this has no effect. Leave it out."),
        ("train.0.gate={prompts: 8}", "train.0.gate: 'kd' is not trained on rewards: this has no effect."),
        ("train.0.lr=0.2", "Warning: --set train.0.lr: 0.2: one step would move"),
        (
            "train.0.lr_in=size",
            "lr: 2e-05: one step would move weights, as a share of their size, by no more than that.",
        ),
        (
            "evaluate=[{task: arith, seeds: [1, 2]}]",
            "seeds: at temperature 0 all completions of a problem are alike: the first seed alone is used.",
        ),
        (
            "evaluate=[{task: 'lm-eval:gsm8k', system: be brief}]",
            "system: lm-eval's own tasks do not take it: this has no effect. Leave it out.",
        ),
        (
            "evaluate=[{task: 'lm-eval:gsm8k', seeds: [1, 2], temperature: 1.0}]",
            "seeds: lm-eval asks once: the first seed alone is used.",
        ),
    ],
)
def test_plan_warns_of_what_has_no_effect_or_no_sense(recipe: Path, change: str, says: str) -> None:
    assert says in told("plan", recipe, "--set", change, code=0)


def test_what_makes_sense_is_not_warned_of(recipe: Path) -> None:
    err = told("plan", recipe, "--set", "train.0.lr=1e-3", "--set", "train.0.optimizer=SGD", code=0)
    assert "Warning" not in err
    sgd = ["--set", "train.0.lr=0.5", "--set", "train.0.optimizer=SGD"]
    assert "Warning" not in told("plan", recipe, *sgd, code=0)


def test_paths_say_what_they_became(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setenv("HERE", str(tmp_path))
    result = CliRunner().invoke(build(), ["plan", str(recipe), "--set", "train.0.data=$HERE/rows.jsonl"])
    assert f"path=$HERE/rows.jsonl ({tmp_path}/rows.jsonl)" in result.stdout


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"prompt\nx\n", "rows.csv' is a .csv file, which has no JSON. Name it as the source"),
        ("rows.jsonl", b'{"prompt": null, "completion": "x"}\n', "rows.jsonl:1: the field 'prompt' is null."),
        ("rows.jsonl", b'{"prompt": \n', "rows.jsonl:1: not JSON: Expecting value at column"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "rows.jsonl:2: not UTF-8."),
    ],
)
def test_plan_with_data_names_file_and_line(recipe: Path, name: str, content: bytes, says: str) -> None:
    Path(name).write_bytes(content)
    assert says in told("plan", recipe, "--data", "--set", f"train.0.data={{source: jsonl, path: {name}}}")


@pytest.mark.parametrize("command", [["plan"], ["qat"], ["qat", "-r"], ["recipes", "cat"], ["recipes", "validate"]])
def test_every_command_says_that_a_folder_is_no_recipe(recipe: Path, command: list[str]) -> None:
    Path("recipes").mkdir()
    Path("recipes", "one.yaml").write_text("name: x\n")
    assert "'recipes' is a folder, not a recipe.\nHint: Name a file in it: one.yaml." in told(*command, "recipes")


# --------------------------------------------------------------------------------------------------- everyday


def test_qat_takes_its_recipe_by_place_or_by_option(recipe: Path) -> None:
    for given in ([recipe], ["--recipe", recipe], ["-r", recipe]):
        assert "--until: 'nothing' is not a step" in told("qat", *given, "--until", "nothing")
    assert "Which recipe?" in told("qat")
    assert "a run has one recipe" in told("qat", recipe, "--recipe", "quickstart")


def test_the_shell_completes_recipes(recipe: Path) -> None:
    Path("more").mkdir()
    assert recipes_beginning("quick") == ["quickstart"]
    assert recipes_beginning("m") == ["mine.yaml", "more/"]
    words = {"_RQAT_COMPLETE": "complete_bash", "COMP_WORDS": "rqat qat quick", "COMP_CWORD": "2"}
    environment = os.environ | words | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = "from rqat.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["quickstart"], done.stderr


def test_a_failed_gate_shows_what_the_model_wrote() -> None:
    from rqat.train.gate import example_of

    line = {"prompt": "What is\n2 + 2?", "completion": "five " * 90, "answer": "4", "ended": False}
    text = example_of([json.loads(json.dumps(line))])
    assert text.startswith(" Asked 'What is 2 + 2?' (answer 4), it wrote '... ")
    assert text.endswith("five five', and was cut off there.")
    assert len(text) < 300
    assert example_of([]) == ""
