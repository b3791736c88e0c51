"""Files of strangers: hostile models, recipes, runs and results are refused or shown harmless, and run no code."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from rqat import report
from rqat.cli.app import build
from rqat.cli.display import harmless
from rqat.contracts import Row
from rqat.errors import RecipeError, RqatError
from rqat.generation.prompts import encode_prompts
from rqat.recipe import load_recipe
from rqat.storage import is_inside
from rqat.yaml_lines import MOST_VALUES, parse_value, read_yaml
from tests.rqat.report.test_report import job as made_up_run  # noqa: F401 (a fixture)
from tests.tiny import save_tiny, tiny_tokenizer

RECIPE = "name: mine\nmodel: {model}\nscheme: w4g64\nquantize: rtn\nexport: null\n"
ESCAPE = "\x1b]0;owned\x07\x1b[2Jhi\x9b31m"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


class Runs:
    """A pickle that leaves a file where it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "model")


def run(*arguments: object, code: int) -> Any:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def quantize(model: Path) -> list[object]:
    return ["quantize", model, "--method", "rtn", "--scheme", "w4g64", "-o", "out"]


# ------------------------------------------------------------------------------------------------ code


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors", "tokenizer.json", "vocab.json"])
def test_pickles_are_never_read(model: Path, name: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for file in model.glob("*.safetensors") if name != "tokenizer.json" else ():
        file.unlink()
    (model / name).write_bytes(pickle.dumps(Runs(mark)))
    if name == "vocab.json":
        (model / "tokenizer.json").unlink()
    run(*quantize(model), code=2)
    run("generate", model, "1", code=2)
    assert not mark.exists()


def test_a_checkpoints_own_code_runs_by_the_users_word_only(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (model / "modeling.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    config = json.loads((model / "config.json").read_text())
    auto = {"AutoModelForCausalLM": "modeling.M", "AutoConfig": "modeling.C"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto}))
    run(*quantize(model), code=2)
    run("generate", model, "1", code=2)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["model", "teacher"])
def test_a_recipe_cannot_allow_code(model: Path, where: str) -> None:
    trusted = f"{{path: {model}, trust_remote_code: true}}"
    text = RECIPE.format(model=trusted if where == "model" else model)
    text += f"train: [{{objective: kd, data: arith, steps: 1, max_tokens: 64, teacher: {trusted}}}]\n"
    Path("mine.yaml").write_text(text if where == "teacher" else text.split("train:")[0])
    key = "model.trust_remote_code" if where == "model" else "train.0.teacher.trust_remote_code"
    for command in (["plan", "mine.yaml"], ["qat", "--recipe", "mine.yaml", "-o", "run"]):
        told = run(*command, code=2).output
        assert f"{key}: a recipe cannot allow a checkpoint's own code to run" in told
        assert f"--set {key}=true" in told
    assert not Path("run").exists()
    run("plan", "mine.yaml", "--set", f"{key}=true", code=0)


def test_a_recipe_cannot_name_a_program(model: Path) -> None:
    ran = Path("ran").resolve()
    Path("problems.jsonl").write_text("{}\n")
    asked = f"{{task: livecodebench, data: problems.jsonl, sandbox: touch {ran}}}"
    Path("mine.yaml").write_text(RECIPE.format(model=model) + f"evaluate: [{asked}]\n")
    for command in (["plan", "mine.yaml"], ["qat", "--recipe", "mine.yaml", "-o", "run"]):
        told = run(*command, code=2).output
        assert "evaluate.0.sandbox: a recipe cannot name a program to be run; only you can." in told
        assert "--set evaluate.0.sandbox='COMMAND'" in told
    assert not ran.exists()
    assert not Path("run").exists()
    run("plan", "mine.yaml", "--set", f"evaluate.0.sandbox=touch {ran}", code=0)
    assert not ran.exists()


def test_a_recipe_cannot_have_a_key_sent_to_a_server(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = "http://localhost:9/v1"
    asked = f"evaluate: [{{task: arith, base_url: {server}, variants: [bf16]}}]\n"
    Path("mine.yaml").write_text(RECIPE.format(model=model) + asked)
    run("plan", "mine.yaml", code=0)
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    told = run("qat", "mine.yaml", "-o", "run", code=2).output
    assert "evaluate.0.base_url: a recipe cannot have OPENAI_API_KEY sent to a server; only you can." in told
    assert not Path("run").exists()
    run("plan", "mine.yaml", "--set", f"evaluate.0.base_url={server}", code=0)


def test_chat_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows: list[Row] = [{"prompt": "1"}]
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "ran") + "') }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ):
        tokenizer.chat_template = attack
        with pytest.raises(RqatError):
            encode_prompts(rows, tokenizer)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", 7, "a\0b"])
def test_an_index_cannot_leave_its_folder(model: Path, tmp_path: Path, name: Any) -> None:
    shutil.copy(model / "model.safetensors", tmp_path / "secret.safetensors")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    assert "not in its folder" in run(*quantize(model), code=2).stderr
    assert not is_inside(name)


def test_names_inside_a_folder_are_known() -> None:
    assert is_inside("model-00001-of-00002.safetensors")
    assert is_inside("shards/..part.safetensors")


# ------------------------------------------------------------------------------------------------ bombs


def test_yaml_bombs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path = Path("bomb.yaml")
    began = time.monotonic()
    for text, says in (
        ("\n".join(lines), f"more than {MOST_VALUES} values"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("a: &a [*a]", "nested deeper"),
        ("a: " + "9" * 5000, "digits"),
        ("a: !!python/object/apply:os.system [id]", "is not taken here"),
    ):
        with pytest.raises(RecipeError) as found:
            parse_value(text, "--set")
        assert says in str(found.value), text[:40]
    assert time.monotonic() - began < 5
    assert not path.exists()


def test_a_recipe_that_is_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text("name: " + "{a: " * 3000)
    with pytest.raises(RecipeError):
        read_yaml(path, "bomb.yaml")
    with pytest.raises(RecipeError):
        load_recipe(str(path))


# ------------------------------------------------------------------------------------------------ what models wrote


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def poisoned(value: Any) -> Any:
    """The same with a script in every text."""
    if isinstance(value, dict):
        return {key: poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    return f"{value}{SCRIPT}\"'>" if isinstance(value, str) and value not in ("correct", "wrong") else value


def test_a_report_with_scripts_in_every_text_runs_none(made_up_run: Any) -> None:  # noqa: F811
    made_up_run.told = [SCRIPT]
    for path in [*made_up_run.folder.rglob("*.jsonl"), *made_up_run.folder.rglob("*/*.json")]:
        rows = (
            [poisoned(json.loads(line)) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
        )
        if rows is not None:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write(made_up_run)
    text = (made_up_run.folder / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert not [tag for tag, _ in tags.found if tag in ("script", "img", "iframe", "object", "link")]
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert links
    assert not [link for link in links if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", link) or ".." in link]
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert "&lt;script&gt;" in text
    policy = [attributes for tag, attributes in tags.found if tag == "meta" and "http-equiv" in attributes]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_nothing_a_model_writes_steers_the_terminal(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harmless(ESCAPE) == r"\x1b]0;owned\x07\x1b[2Jhi\x9b31m"
    assert harmless("a\tb\nc \u4e2d\u2028") == "a\tb\nc \u4e2d\u2028"
    assert harmless("\u202eabc") == r"\u202eabc"
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.decode", lambda *words, **more: ESCAPE)
    shown = run("generate", model, "1", "--max-new-tokens", "2", code=0).output
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_errors_spell_out_what_steers_a_terminal(model: Path) -> None:
    Path("d.jsonl").write_text(json.dumps({f"a{ESCAPE}": "x"}) + "\n")
    told = run("quantize", model, "--method", "gptq", "--calibration", "d.jsonl", "-o", "out", code=2).stderr
    assert r"\x1b" in told
    assert "\x1b]0" not in told


def test_nothing_in_a_recipe_or_a_run_steers_the_terminal(model: Path) -> None:
    spelled = json.dumps(ESCAPE)  # as YAML reads it, too
    for change in (f"model: {spelled}", f"scheme: {{default: w4g64, {spelled}: w3g64}}", f"compare: [{spelled}]"):
        key = change.partition(":")[0]
        kept = [line for line in RECIPE.format(model=model).splitlines() if not line.startswith(f"{key}:")]
        Path("evil.yaml").write_text("\n".join([*kept, change]))
        for command in (
            ["plan", "evil.yaml"],
            ["qat", "evil.yaml", "-o", "evil"],
            ["recipes", "validate", "evil.yaml"],
        ):
            result = CliRunner().invoke(build(), command)
            assert result.exit_code in (0, 2)
            assert steering(result.output) == set(), command
    Path("mine.yaml").write_text(RECIPE.format(model=model))
    run("qat", "mine.yaml", "-o", "run", code=0)
    [manifest] = Path("run").glob("*-rtn/manifest.json")
    written = json.loads(manifest.read_text())
    written["files"] |= {f"a{ESCAPE}": "0" * 64}
    manifest.write_text(json.dumps(written | {"variant": ESCAPE, "told": [ESCAPE]}))
    for command, code in (
        (["runs", "verify", "run"], 2),
        (["report", "run"], 0),
        (["qat", "mine.yaml", "-o", "run"], 0),
    ):
        told = run(*command, code=code).output
        assert steering(told) == set(), command
        assert r"\x1b]0;owned" in told or command[0] == "report"


def steering(text: str) -> set[str]:
    """Characters of a text that steer a terminal."""
    return {character for character in text if ord(character) < 32 or 127 <= ord(character) < 160} - {*"\n\t"}


def test_a_model_card_holds_no_markup_of_a_models_name(model: Path, tmp_path: Path) -> None:
    evil = model.rename(tmp_path / "x](javascript:alert(1))<script>\n---\nevil: yes")
    run(*quantize(evil), code=0)
    card = Path("out/README.md").read_text()
    assert "javascript" in card
    assert "<" not in card
    assert "](" not in card
    assert "evil: yes" not in card


# ------------------------------------------------------------------------------------------------ secrets


def test_a_hub_token_is_written_nowhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "s3cret" * 5
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, secret)
    Path("mine.yaml").write_text(RECIPE.format(model=model))
    told = run("-v", "qat", "--recipe", "mine.yaml", "-o", "run", code=0).output
    told += run("plan", "mine.yaml", "--json", code=0).output
    assert secret not in told
    files = [path for path in Path("run").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    told = run("eval", "arith", model, "--base-url", f"http://me:{secret}@localhost:9/v1", code=2).output
    assert "--base-url: holds a name or a password, which would stand in the run's files" in told
    assert secret not in told
    assert not Path("results").exists()


# ------------------------------------------------------------------------------------------------ memory


def test_out_of_memory_is_one_line_and_the_run_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rqat.stages.train.run as train

    text = RECIPE.format(model=model)
    text += "train: [{objective: sft, data: arith, steps: 2, batch: 4, max_tokens: 512}]\n"
    Path("mine.yaml").write_text(text)
    command = ["qat", "--recipe", "mine.yaml", "-o", "run"]

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf the allocated memory ...")

    with monkeypatch.context() as patch:
        patch.setattr(train, "run", full)
        told = run(*command, code=2).stderr
    [line] = [line for line in told.splitlines() if line.startswith("Error")]
    assert "train-sft: out of memory on cpu: CUDA out of memory. Tried to allocate 20.00 GiB." in line
    assert "train.0.micro_batch=2 saves about" in told
    assert "train.0.gradient_checkpointing=true saves about" in told
    kept = next(Path("run").glob("*-quantize-rtn/manifest.json")).stat().st_mtime_ns
    run(*command, "--set", "train.0.micro_batch=2", code=0)
    assert next(Path("run").glob("*-quantize-rtn/manifest.json")).stat().st_mtime_ns == kept
    assert os.path.exists("run/report.html")
