"""What users get wrong: exit code 2, one message that names the thing, no traceback, nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from tests.tiny import save_tiny, tiny_tokenizer

RECIPE = """name: mine
model: {model}
scheme: w4g64
quantize: rtn
export: null
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that is never written to."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def own_model(model: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(model, tmp_path / "own"))


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    """A recipe that would run."""
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(model=model))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command runs in a folder of its own, which shows what it leaves behind."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def refused(*arguments: object, says: Sequence[str], leaves: Sequence[str] = (), code: int = 2) -> str:
    """Runs a command that must be refused, with a message holding all of `says`; returns what it wrote on stderr.

    Args:
        leaves: names it may leave in the current folder.
    """
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), f"a bug, not a mistake: {result.exception!r}"
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert sum(line.startswith("Error:") for line in result.stderr.splitlines()) == 1, result.stderr
    for words in says:
        assert words in result.stderr, f"{words!r} is not in: {result.stderr}"
    assert sorted(path.name for path in Path().iterdir()) == sorted(leaves)
    return result.stderr


def quantize(
    model: object, *more: object, method: str = "rtn", scheme: str = "w4g64", out: object = "out"
) -> list[object]:
    return ["quantize", model, "--method", method, "--scheme", scheme, "-o", out, *more]


# ------------------------------------------------------------------------------------------------ names and keys


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "evaluate={task: arith}",
            "evaluate: a mapping stands where a list of them belongs; write `evaluate: [{task: ...",
        ),
        (
            "compare={method: rtn}",
            "compare: a mapping stands where a list of them belongs; write `compare: [{method: ...",
        ),
        ("start=3", "start: 3 is neither a path nor a mapping."),
        ("budget=true", "budget: true is neither a size nor a mapping."),
        (
            "train=[{objective: grpo, data: arith, task: arith, steps: 1, rewards: {length: .nan}}]",
            "train.0.rewards.length: '.nan' is neither a weight nor a mapping.",
        ),
    ],
)
def test_values_of_another_kind_are_told_with_what_belongs_there(recipe: Path, given: str, says: str) -> None:
    refused("plan", recipe, "--set", given, says=[says])


@pytest.mark.parametrize("name", ["lr", "scale_lr", "zero_lr", "other_lr", "weight_decay", "temperature"])
def test_numbers_without_end_are_refused_of_the_host_s_keys_and_of_plugins(recipe: Path, name: str) -> None:
    recipe.write_text(
        f"{recipe.read_text()}train: [{{objective: kd, data: arith, steps: 1, optimizer: SGD, {name}: .inf}}]\n"
    )
    refused("plan", recipe, says=[f"mine.yaml:6 train.0.{name}: inf: input should be a finite number."])


@pytest.mark.parametrize("key", ["budget", "train.0.lr", "name"])
def test_a_value_that_a_shell_left_empty_is_not_taken_for_null(recipe: Path, key: str) -> None:
    recipe.write_text(f"{recipe.read_text()}train: [{{objective: kd, data: arith, steps: 1}}]\n")
    refused("plan", recipe, "--set", f"{key}=", says=[f"--set {key}: has no value. Write null"])


@pytest.mark.parametrize("changed", ["--set", "extends"])
def test_a_name_that_two_entries_of_a_list_have_names_neither(recipe: Path, changed: str) -> None:
    kd = "{objective: kd, data: arith, steps: 1, max_tokens: 64}"
    recipe.write_text(f"{recipe.read_text()}train: [{kd}, {kd}]\n")
    says = ["'train' has several entries 'kd'; write 0 or 1."]
    if changed == "--set":
        refused("plan", recipe, "--set", "train.kd.steps=2", says=says)
        return
    over = recipe.with_name("over.yaml")
    over.write_text(f"extends: {recipe.name}\ntrain: {{kd: {{steps: 2}}}}\n")
    refused("plan", over, says=["over.yaml:2", *says])


def test_plan_takes_a_recipe_as_a_run_does(recipe: Path) -> None:
    told = CliRunner().invoke(build(), ["plan", "--recipe", str(recipe)])
    assert told.exit_code == 0, told.output
    refused("plan", says=["Which recipe?", "rqat plan quickstart"])
    refused("plan", recipe, "-r", "quickstart", says=["a run has one recipe"])


@pytest.mark.parametrize("name", ["-", "rows.csv", "rows"])
def test_traces_go_into_a_file_that_is_read_as_rows(model: Path, name: str) -> None:
    says = [f"'{name}' is not the name of a .jsonl file"]
    refused("traces", model, "--prompts", "arith", "-o", name, says=says)


def test_unknown_recipe() -> None:
    refused("qat", "--recipe", "quickstrat", says=["'quickstrat'", "recipe", "Known"])


def test_unknown_task(model: Path) -> None:
    refused("eval", "arit", model, says=["'arit' is not a task", "Did you mean 'arith'"])
    says = [
        "--set sandbox: 'livecodebench' runs programs that a model has written, and no sandbox is named",
        "docker run",
    ]
    refused("eval", "livecodebench", model, says=says)


def test_unknown_method(model: Path) -> None:
    refused(*quantize(model, method="gtpq"), says=["--method", "'gtpq' is not a quantizer", "Did you mean 'gptq'"])


def test_unknown_key_in_a_recipe(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "quantise: gptq\n")
    refused("qat", "--recipe", recipe, says=["mine.yaml:6", "'quantise'", "Did you mean 'quantize'"])


def test_unknown_option_of_a_plugin(model: Path) -> None:
    refused(*quantize(model, "--option", "clpi=mse"), says=["--option", "'clpi'", "Did you mean 'clip'"])


def test_set_of_a_key_that_does_not_exist(recipe: Path) -> None:
    refused("qat", "--recipe", recipe, "--set", "schmee=w2g64", says=["--set schmee", "Did you mean 'scheme'"])


def test_set_without_a_value(recipe: Path) -> None:
    refused("qat", "--recipe", recipe, "--set", "scheme", says=["--set", "'scheme'", "key=value"])


@pytest.mark.parametrize("scheme", ["w5g64", "two-bit", "w4g60", "w4a4kv4"])
def test_unknown_scheme(model: Path, scheme: str) -> None:
    refused(*quantize(model, scheme=scheme), says=["--scheme", scheme])


def test_unknown_format(model: Path) -> None:
    refused(*quantize(model, "--format", "exl2"), says=["--format", "'exl2' is not an exporter", "compressed-tensors"])


def test_options_of_a_format(model: Path) -> None:
    refused(*quantize(model, "--format", "gguf:tipes=k"), says=["--format", "'tipes'", "Did you mean 'types'"])
    refused(*quantize(model, "--format", "gguf:types=x"), says=["--format types", "'x' is not one of exact, k"])
    refused(*quantize(model, "--format", "gguf:k"), says=["--format: 'k' is not KEY=VALUE"])


def test_unknown_calibration_source(model: Path) -> None:
    refused(*quantize(model, "--calibration", "airth"), says=["--calibration", "'airth' is not a source", "'arith'"])


def test_yaml_that_does_not_parse(recipe: Path) -> None:
    recipe.write_text("name: mine\nmodel: [unclosed\nscheme: w4g64\n")
    refused("qat", "--recipe", recipe, says=["mine.yaml:3", "is not YAML"])


def test_wrong_types_are_all_told_at_once(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "calibration: {source: arith, samples: many, tokens: 0}\n")
    refused("qat", "--recipe", recipe, says=["mine.yaml:6 calibration.samples", "'many'", "calibration.tokens"])


def test_budgets_that_cannot_be_kept(model: Path, recipe: Path) -> None:
    data = ("--calibration", "arith")
    bounds = "cannot be had of this model with these widths in 'compressed-tensors': between 0."
    refused(*quantize(model, "--budget", "1bits", *data), says=["--budget: 1bits", bounds, "are possible"])
    refused(*quantize(model, "--budget", "9GB", *data), says=["--budget: 9GB", bounds, "set no budget"])
    refused(*quantize(model, "--budget", "small", *data), says=["--budget: 'small' is not a size", "2.8bits"])
    refused(*quantize(model, "--budget", "4bits"), says=["--budget: what a width costs", "give --calibration SOURCE"])
    recipe.write_text(recipe.read_text() + "budget: {size: 4, width: [2]}\n")
    refused("qat", "--recipe", recipe, says=["mine.yaml:6", "'width'", "Did you mean 'widths'"])


def test_method_that_needs_data_without_any(model: Path) -> None:
    refused(*quantize(model, method="gptq"), says=["'gptq' looks at data", "give --calibration SOURCE"])


def test_layers_to_skip_that_are_not_there(model: Path) -> None:
    refused(*quantize(model, "--skip", "*.q_porj"), says=["--skip: '*.q_porj' matches no linear layer"])


def test_checkpoint_whose_loader_is_not_installed(
    own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))
    monkeypatch.setattr("rqat.model.extras.find_spec", lambda name: None)
    refused("generate", own_model, "2 + 3?", says=["is a gptq checkpoint", "pip install gptqmodel optimum"])


def test_option_of_the_command_given_as_one_of_the_task(model: Path) -> None:
    message = refused("eval", "arith", model, "--set", "batch=3", says=["--set batch", "'batch' is not a key. Known:"])
    assert "Did you mean" not in message
    assert "variants" not in message


# ------------------------------------------------------------------------------------------------ models


def test_missing_model() -> None:
    refused(*quantize("./no/such/model"), says=["./no/such/model", "does not exist"])


def test_unknown_builtin_model() -> None:
    refused(*quantize("builtin:tiny-raesoner"), says=["'builtin:tiny-raesoner' is not a built-in model"])


def test_hub_model_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    refused("--offline", *quantize("nobody/nothing"), says=["'nobody/nothing'", "lacks", "--offline"])


def test_model_that_is_quantized_already(own_model: Path) -> None:
    config = json.loads((own_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (own_model / "config.json").write_text(json.dumps(config))
    refused(*quantize(own_model), says=[str(own_model), "quantized already (gptq)"])


def test_layers_that_do_not_split_into_groups(model: Path) -> None:
    refused(*quantize(model, scheme="w4g96"), says=["model.layers.0.self_attn.q_proj", "96"])


def test_corrupt_safetensors(own_model: Path) -> None:
    weights = own_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(*quantize(own_model), says=["model.safetensors", "damaged"])


def test_safetensors_that_is_something_else(own_model: Path) -> None:
    (own_model / "model.safetensors").write_bytes(b"<html>404</html>")
    refused(*quantize(own_model), says=["model.safetensors", "not a readable safetensors file"])


def test_missing_tensors(own_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(own_model / "model.safetensors")
    del state["model.layers.1.mlp.down_proj.weight"]
    save_file(state, own_model / "model.safetensors", metadata={"format": "pt"})
    refused(*quantize(own_model), says=["model.layers.1.mlp.down_proj.weight", "lacks"])


def test_weights_that_are_not_finite(own_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(own_model / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, own_model / "model.safetensors", metadata={"format": "pt"})
    refused(*quantize(own_model), says=["model.layers.1.mlp.up_proj.weight", "not finite"])


def test_tokenizer_of_another_model(own_model: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra-{index}>" for index in range(200)])
    tokenizer.save_pretrained(own_model)
    refused(*quantize(own_model), says=["tokenizer", "vocabulary", str(own_model)])


def test_model_without_a_tokenizer(own_model: Path) -> None:
    for path in own_model.glob("token*"):
        path.unlink()
    refused(*quantize(own_model), says=[str(own_model), "no tokenizer"])


def test_pickled_weights(own_model: Path) -> None:
    (own_model / "model.safetensors").rename(own_model / "pytorch_model.bin")
    refused(*quantize(own_model), says=["pickle", "safetensors"])


def test_architecture_that_is_not_supported(own_model: Path) -> None:
    config = json.loads((own_model / "config.json").read_text())
    (own_model / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    refused(*quantize(own_model), says=["'mamba'", "cannot quantize", "qwen3"])


TRAIN = """train:
  - objective: {objective}
    data: arith
    steps: 2
    max_tokens: 64
    teacher: {teacher}
"""


def test_teacher_with_another_vocabulary(recipe: Path, own_model: Path) -> None:
    other = tiny_tokenizer()
    other.add_tokens(["<think>"])
    other.save_pretrained(own_model)
    recipe.write_text(recipe.read_text() + TRAIN.format(objective="kd", teacher=own_model))
    sizes = f"of {len(other)} and {len(other) - 1} tokens"
    told = ["mine.yaml:11 train.0.teacher", str(own_model), "different vocabularies", sizes, "'<think>'"]
    refused("qat", "--recipe", recipe, "-o", "run", says=told)


def test_data_of_a_late_step_is_looked_at_before_the_first(recipe: Path) -> None:
    Path("bad.jsonl").write_text('{"text": 3}\n')
    late = TRAIN.format(objective="sft", teacher="x").replace("    teacher: x\n", "")
    late = late.replace("data: arith", "data: {source: jsonl, path: bad.jsonl}")
    recipe.write_text(recipe.read_text() + late + "evaluate: [lm-eval:gsm8kk]\n")
    told = ["mine.yaml:7 train.0", "bad.jsonl:1", "evaluate.0.task: 'gsm8kk' is not a task", "the nearest is 'gsm8k'"]
    refused("qat", "--recipe", recipe, "-o", "run", says=told, leaves=["bad.jsonl"])


def test_teacher_that_is_not_there(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + TRAIN.format(objective="kd", teacher="./no/such/teacher"))
    refused("qat", "--recipe", recipe, says=["mine.yaml:11 train.0.teacher", "./no/such/teacher", "does not exist"])


def test_teacher_for_an_objective_without_one(recipe: Path, model: Path) -> None:
    recipe.write_text(recipe.read_text() + TRAIN.format(objective="sft", teacher=model))
    refused("qat", "--recipe", recipe, says=["mine.yaml:11 train.0.teacher", "'sft' learns from no teacher", "kd"])


def test_model_and_task_in_the_wrong_order(model: Path) -> None:
    refused("eval", model, "arith", says=["is a model; the task comes first", f"rqat eval arith {model}"])


@pytest.mark.parametrize("seed", [-1, 1 << 32, 10**20])
def test_seeds_that_a_library_would_refuse_in_the_middle(recipe: Path, model: Path, seed: int) -> None:
    says = "-1: has to be 0 or more." if seed < 0 else f"{seed}: has to be 4294967295 or less."
    recipe.write_text(recipe.read_text() + TRAIN.format(objective="sft", teacher="null"))
    for place in ("train.0.seed", "train.0.data.seed"):
        refused("plan", recipe, "--set", f"{place}={seed}", says=[f"--set {place}: {says}"])
    for command in (["generate", model, "2 + 3"], ["traces", model, "--prompts", "arith", "-o", "out.jsonl"]):
        result = CliRunner().invoke(build(), [*map(str, command), "--seed", str(seed)])
        assert result.exit_code == 2
        assert "'--seed'" in result.stderr


@pytest.mark.parametrize("words", [["-"], ["-c"]])
def test_standard_input_that_is_no_text(tmp_path: Path, words: list[str]) -> None:
    model = save_tiny(tmp_path / "talks")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    result = CliRunner().invoke(build(), ["generate", str(model), *words], input=b"\xff\xfe1\x00+\x00")
    assert result.exit_code == 2, result.output
    assert "The prompt: character 1 is half of a pair" in result.stderr
    assert "in another encoding" in result.stderr


def test_prompt_longer_than_the_context(model: Path) -> None:
    refused("generate", model, "7" * 600, says=["600 tokens", "512"])


def test_prompts_of_a_task_longer_than_the_context(tmp_path: Path) -> None:
    short = save_tiny(tmp_path / "short", context=32)
    refused("eval", "arith", short, "--limit", "3", says=["do not fit", "32 tokens"])


# ------------------------------------------------------------------------------------------------ data


def test_empty_calibration_source(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(*quantize(model, "--calibration", empty, method="gptq"), says=["empty.jsonl"])


def test_malformed_row(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good"}\n{"text": 7\n')
    refused(*quantize(model, "--calibration", data, method="gptq"), says=["rows.jsonl", "2"])


def test_missing_data_file(model: Path) -> None:
    refused(*quantize(model, "--calibration", "none.jsonl", method="gptq"), says=["there is no file 'none.jsonl'"])


def test_missing_problems(model: Path) -> None:
    refused("eval", "math500", model, "--data", "none.jsonl", says=["none.jsonl"])


# ------------------------------------------------------------------------------------------------ folders


def test_output_folder_that_holds_something_else(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    refused(*quantize(model, out=out), says=[str(out), "something else"])
    assert (out / "thesis.tex").read_text() == "precious"


def test_run_folder_that_holds_something_else(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    refused("qat", "--recipe", recipe, "-o", out, says=[str(out), "thesis.tex"])
    refused("qat", "--recipe", recipe, "-o", out, "--fresh", says=[str(out), "thesis.tex"])
    assert (out / "thesis.tex").read_text() == "precious"


def test_output_that_is_a_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("precious")
    refused(*quantize(model, out=out), says=[str(out), "file"])
    refused("eval", "arith", model, "-o", out, says=[str(out), "file"])
    assert out.read_text() == "precious"


def test_run_instead_of_a_model(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "run" / "01-quantize-rtn")
    refused("generate", tmp_path / "run", "hello", says=["is a run", "01-quantize-rtn"])


# ------------------------------------------------------------------------------------------------ plugins


def install(folder: Path, name: str, code: str) -> None:
    """A third-party plugin of one file: module `name` of the distribution `acme-<name>`, with its entry point."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    information = folder / f"acme_{name}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text(f"[rqat]\n{name} = {name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from; what was imported is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def test_plugin_that_raises_on_import(site: Path, model: Path) -> None:
    install(site, "raiser", "raise RuntimeError('needs a licence')\n")
    refused(
        *quantize(model, method="raiser"),
        says=["'raiser' is not a quantizer", "Broken", "needs a licence", "rqat plugins"],
    )
    told = CliRunner().invoke(build(), ["plugins", "ls"])
    assert told.exit_code == 0
    assert "raiser (acme-raiser): RuntimeError: needs a licence" in told.stdout


OFFER = """import rqat

@rqat.hookimpl
def register_quantizers(register):
    register("twice", load=":Twice")

class Twice(rqat.Quantizer):
    def quantize_linear(self, weight, stats, scheme): ...
"""


def test_two_plugins_with_one_name(site: Path, model: Path) -> None:
    install(site, "first", OFFER)
    install(site, "second", OFFER)
    refused(*quantize(model, method="twice"), says=["'twice'", "acme-first 1.2", "acme-second 1.2"])
    assert CliRunner().invoke(build(), ["recipes", "ls"]).exit_code == 0


def test_recipe_error_of_a_plugin_is_one_line(site: Path, model: Path) -> None:
    """Its argument is a list where rqat raises it; a plugin gives it a text, which is no list of letters."""
    code = """
import rqat

class Picky(rqat.Quantizer):
    def quantize_linear(self, weight, stats, scheme):
        raise rqat.RecipeError("no such thing here", hint="Ask for another.")

@rqat.hookimpl
def register_quantizers(register):
    register("picky", load=":Picky", summary="a test")
"""
    install(site, "picky", code)
    told = refused(*quantize(model, method="picky"), says=["Error: no such thing here\nHint: Ask for another."])
    assert "n\no" not in told


ACME = """import rqat

class Options(rqat.Options):
    {option}

class Acme(rqat.Quantizer):
    {method}

@rqat.hookimpl
def register_quantizers(register):
    register("acme", options=Options, load=":Acme")
"""


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "def quantize_linear(self, w, s, c): raise ValueError('odd')",
            ["'acme'", "ValueError: odd", "acme.py:7, in q"],
        ),
        ("def quantize_linear(self, w, s, c): open('nowhere.bin')", ["FileNotFoundError", "nowhere.bin", "acme.py:7"]),
        ("def __init__(self, options): assert False", ["(acme-acme) failed: AssertionError (", "in __init__)"]),
        ("def __init__(self): ...", ["'Acme' takes (); it is built with its options", "def __init__(self, options)"]),
    ],
)
def test_what_a_plugin_raises_is_told_as_its_own(site: Path, model: Path, method: str, says: list[str]) -> None:
    if "__init__" in method:
        method += "\n    def quantize_linear(self, weight, stats, scheme): ..."
    install(site, "acme", ACME.format(option="pass", method=method))
    told = CliRunner().invoke(build(), [*map(str, quantize(model, method="acme")), "-v"])
    assert told.exit_code == 2
    if "failed" in told.stderr:
        assert "Traceback" in told.stderr, "with -v, where it was raised"
    refused(*quantize(model, method="acme"), says=says)


@pytest.mark.parametrize("what", ["codes", "scale", "zero"])
def test_a_quantized_weight_without_one_of_its_tensors(site: Path, model: Path, what: str) -> None:
    method = f"""def quantize_linear(self, weight, stats, scheme):
        import dataclasses
        grid = rqat.grid_of(scheme)
        whole = grid.quantize_layer(weight, *grid.fit_layer(weight))
        return dataclasses.replace(whole, {what}=None)"""
    install(site, "acme", ACME.format(option="pass", method=method))
    refused(*quantize(model, method="acme"), says=[f"{what} is None; expected a tensor", "fault of the plugin"])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("d: object = rqat.Field(default_factory=lambda: 1 / 0)", "ZeroDivisionError: division by zero"),
        ("d: rqat.Any = print", "'d' cannot be written as JSON"),
        ("d: bytes = b'\\xff'", "'d' cannot be written as JSON"),
        ("d: rqat.SecretStr = rqat.SecretStr('x')", "'d' is a secret, and all that recipes say is written down"),
    ],
)
def test_options_that_no_recipe_can_hold(site: Path, model: Path, option: str, says: str) -> None:
    code = ACME.format(option=option, method="def quantize_linear(self, weight, stats, scheme): ...")
    for name, module in (("Field", "pydantic"), ("Any", "typing"), ("SecretStr", "pydantic")):
        code = code.replace(f"rqat.{name}", f"__import__('{module}').{name}")
    install(site, "acme", code)
    refused(*quantize(model, method="acme"), says=["options of quantizer 'acme' (acme, acme-acme 1.2)", says])


def test_options_whose_type_is_not_there(site: Path, model: Path) -> None:
    code = ACME.format(option="d: 'Nowhere' = None", method="def quantize_linear(self, weight, stats, scheme): ...")
    install(site, "acme", code)
    refused(*quantize(model, method="acme"), says=["options of 'acme' name the type 'Nowhere', which is not there"])


def test_misspelt_hook(site: Path, model: Path) -> None:
    install(site, "speller", OFFER.replace("register_quantizers", "register_quantisers"))
    refused(*quantize(model, method="twice"), says=["'twice' is not a quantizer", "Broken", "speller", "rqat plugins"])
    told = CliRunner().invoke(build(), ["plugins", "ls"])
    assert "'register_quantisers' is not a hook; did you mean 'register_quantizers'?" in told.stdout


def test_plugin_whose_class_is_not_there(site: Path, model: Path) -> None:
    install(site, "absent", OFFER.replace(":Twice", ":Twicce"))
    refused(*quantize(model, method="twice"), says=["acme-absent", "'Twicce'", "Did you mean 'Twice'"])


# ------------------------------------------------------------------------------------------------ disks


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # mapped files may still be open


def test_disk_that_is_too_small_is_seen_before_any_work(model: Path, mounted: Path) -> None:
    refused(*quantize(model, scheme="w8g64", out=mounted / "out"), says=["needs about", "are free there"])
    assert list(mounted.iterdir()) == []


def test_disk_that_runs_full(model: Path, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqat.capacity._room", lambda *arguments, **_: [])  # which would see it coming
    refused(*quantize(model, out=mounted / "out"), says=["the disk is full", str(mounted)], code=3)
    assert not (mounted / "out").exists()
    kept = {path: path.stat().st_mtime_ns for path in mounted.glob(".out.rqat/*.partial/.resume/*.safetensors")}
    assert kept, "what it is to resume from"
    subprocess.run(["mount", "-o", "remount,size=4m", mounted], check=True)
    from rqat.model.block_store import BlockStore

    written, save = list[str](), BlockStore.save
    monkeypatch.setattr(
        BlockStore, "save", lambda self, block, *rest: (written.append(block.name), save(self, block, *rest))
    )
    assert CliRunner().invoke(build(), [str(word) for word in quantize(model, out=mounted / "out")]).exit_code == 0
    assert {f"{name}.safetensors" for name in written}.isdisjoint(path.name for path in kept)


@pytest.mark.parametrize("name", ["circle", "n" * 300])
def test_a_path_that_no_file_can_have(model: Path, recipe: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    says = ["is no usable path", "links lead in a circle" if name == "circle" else "the name is too long"]
    for command in (quantize(model, out=tmp_path / name), ["qat", "--recipe", recipe, "-o", tmp_path / name]):
        refused(*command, says=says)


def test_settings_of_a_calibration_that_is_not_there(model: Path) -> None:
    refused(*quantize(model, "--samples", 7), says=["--samples is about calibration, and there is none"])


def test_no_permission_to_write(model: Path, recipe: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro,size=16m", mounted], check=True)
    refused(*quantize(model, out=mounted / "out"), says=[str(mounted), "the file system is read-only"])
    refused("qat", "--recipe", recipe, "-o", mounted / "run", says=[str(mounted), "the file system is read-only"])
    refused("recipes", "cp", recipe, mounted / "copy.yaml", says=[str(mounted), "the file system is read-only"])


# ------------------------------------------------------------------------------------------------ interruptions


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint but the record, which holds times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "rqat.json"}


def test_ctrl_c_in_a_stage_is_130_and_the_same_command_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rqat.stages.export.run as export

    command = [str(word) for word in quantize(model)]
    with monkeypatch.context() as patch:
        patch.setattr(export, "run", lambda job, step: (_ for _ in ()).throw(KeyboardInterrupt))
        interrupted = CliRunner().invoke(build(), command)
    assert interrupted.exit_code == 130
    assert "same command resumes" in interrupted.stderr
    assert not Path("out").exists()
    quantized = next(Path(".out.rqat").glob("*-quantize-*/manifest.json"))
    written = quantized.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **keys: None)
        assert CliRunner().invoke(build(), command).exit_code == 0
    assert quantized.stat().st_mtime_ns == written, "the finished step was done again"
    assert CliRunner().invoke(build(), [str(word) for word in quantize(model, out="unbroken")]).exit_code == 0
    assert contents(Path("out")) == contents(Path("unbroken"))


@pytest.mark.slow
def test_a_real_signal_is_130_without_a_traceback(model: Path, tmp_path: Path) -> None:
    command = quantize(model, "--calibration", "arith", "--samples", "2000", "--tokens", "256", method="gptq")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-m", "rqat", *map(str, command)], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(Path().glob(".out.rqat/*-quantize-*.partial")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "Interrupted. The same command resumes" in stderr
    assert not Path("out").exists()


def test_an_interrupt_within_code_from_a_string_is_130_too() -> None:
    """CPython would kill itself by SIGINT when the command is long over."""
    script = """
import sys
from rqat.cli import app, doctor

def stop() -> None:
    exec("raise KeyboardInterrupt")

doctor.doctor = stop
sys.argv = ["rqat", "doctor"]
app.main()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    Path("stopped.py").write_text(script)
    done = subprocess.run([sys.executable, "-m", "stopped"], capture_output=True, text=True, env=environment)
    assert done.returncode == 130
    assert done.stderr == "\nInterrupted.\n"
