"""Who writes completions: the engine where it can on CUDA, transformers elsewhere; results say which it was."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.errors import ModelError
from rqat.evals import harness
from rqat.generation import backend
from rqat.generation.backend import open_model, writer_for
from rqat.generation.complete import Generator, sample
from rqat.generation.engine import Engine
from rqat.generation.prompts import encode_prompts
from rqat.generation.sampling import Sampling
from rqat.generation.transformers_writer import TransformersWriter
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.registry import Registry
from rqat.stages.evaluate import run as evaluate
from rqat.stages.evaluate.command import eval_plan
from rqat_kernels.grid import fit_minmax, quantize
from rqat_kernels.packed_linear import PackedLinear
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model in bfloat16 that says it is on a GPU; the engine looks at its weights, which are not."""
    made = tiny_model().to(torch.bfloat16)
    monkeypatch.setattr(type(made), "device", torch.device("cuda"))
    return made


def test_the_engine_on_cuda_and_transformers_on_the_cpu(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(writer_for(model), Engine)
    assert isinstance(writer_for(model, "transformers"), TransformersWriter)
    monkeypatch.setattr(type(model), "device", torch.device("cpu"))
    assert isinstance(writer_for(model), TransformersWriter)
    assert isinstance(writer_for(model, "packed"), Engine)


def test_names_in_results(model: Any) -> None:
    assert [writer_for(model).name, writer_for(model, "transformers").name] == ["engine", "transformers"]
    layer = model.model.layers[0].mlp.up_proj
    scale, zero = fit_minmax(layer.weight, 4, 3, symmetric=False)
    codes = quantize(layer.weight, scale, zero, 3)
    model.model.layers[0].mlp.up_proj = PackedLinear.from_codes(codes, scale, zero, 2, None)
    assert writer_for(model).name == "packed"


class Other(nn.Module):
    """A linear layer that is more than its weight."""

    in_features = 1


def another_family(model: Any) -> None:
    model.config.model_type = "gemma"


def another_layer(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = Other()


def without_weight(model: Any) -> None:
    """As compressed-tensors leaves a layer: of torch's own class, the weight gone, another `forward`."""
    layer = model.model.layers[0].mlp.up_proj
    weight = layer.weight
    del layer.weight
    layer.forward = lambda x: nn.functional.linear(x, weight)


def with_hook(model: Any) -> None:
    model.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda module, inputs: None)


def with_hook_around(model: Any) -> None:
    model.model.layers[0].self_attn.register_forward_hook(lambda module, inputs, output: None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (another_family, "its family is gemma"),
        (another_layer, "model.layers.0.mlp.up_proj is a Other"),
        (without_weight, "model.layers.0.mlp.up_proj is a Linear without a weight"),
        (with_hook, "model.layers.0.mlp.up_proj is a Linear with hooks"),
        (with_hook_around, "model.layers.0.self_attn has hooks"),
        (lambda model: model.float(), "The model is in float32"),
    ],
)
def test_others_are_left_to_transformers(model: Any, change: Any, says: str, caplog: pytest.LogCaptureFixture) -> None:
    change(model)
    with caplog.at_level(logging.WARNING, "rqat"):
        assert isinstance(writer_for(model), TransformersWriter)
    [line] = caplog.messages
    assert line.startswith("Completions are written by transformers' generate")
    assert says in line
    assert "\n" not in line


def no_memory(*arguments: object, **settings: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_memory_for_the_engine(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "Engine", no_memory)
    with caplog.at_level(logging.WARNING, "rqat"):
        assert isinstance(writer_for(model), TransformersWriter)
    assert "too little memory" in caplog.text


# ---------------------------------------------------------------------------------------------- an exported checkpoint


def exported(folder: Path, scheme: str = "w2g32") -> Path:
    source = save_tiny(folder / "model")
    command = ["quantize", str(source), "--method", "rtn", "--scheme", scheme, "-o", str(folder / "out")]
    result = CliRunner().invoke(build(), command)
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_layers_that_were_left_compressed_are_left_to_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers loads an export with compressed-tensors: layers of torch's class, without a weight."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = exported(tmp_path)

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    layer = model.model.layers[0].mlp.up_proj
    assert "weight" not in layer._parameters, "no longer left compressed: test another way"
    with monkeypatch.context() as change:
        change.setattr(backend, "log", logging.getLogger("told"))  # commands keep rqat's own from pytest
        change.setattr(type(model), "device", torch.device("cuda"))
        assert isinstance(writer_for(model), TransformersWriter)
    assert "is a Linear without a weight" in caplog.text
    # It decompresses itself when it is called as a whole, which the engine does not.
    with pytest.raises(ModelError, match="the model has hooks"):
        Engine(model)


@pytest.mark.parametrize(
    ("scheme", "device", "chosen", "packed"),
    [
        ("w2g32", "cuda", "auto", True),
        ("w2g32", "cpu", "auto", False),
        ("w2g32", "cuda", "transformers", False),
        ("w8g32", "cuda", "auto", False),
    ],
)
def test_an_export_is_opened_on_packed_weights_where_that_is_faster(
    scheme: str, device: str, chosen: Any, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = exported(tmp_path, scheme)
    opened: list[str] = []
    monkeypatch.setattr(backend, "load_packed", lambda *_, **__: opened.append("packed"))
    monkeypatch.setattr(backend, "load_model", lambda *_, **__: opened.append("transformers"))
    monkeypatch.setattr(backend, "log", logging.getLogger("told"))
    open_model(ModelKeys(path=str(folder)), device=device, backend=chosen)
    assert opened == ["packed" if packed else "transformers"]
    assert ("has weights of 8 bits" in caplog.text) == (scheme == "w8g32")


def test_a_plain_model_is_opened_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)
    monkeypatch.setattr(backend, "load_packed", lambda *_, **__: pytest.fail("packed"))
    monkeypatch.setattr(backend, "load_model", lambda *_, **__: "as it is")
    assert open_model(ModelKeys(path=str(tmp_path)), device="cuda") == "as it is"


# ------------------------------------------------------------------------------------------------------------ a stage


@pytest.fixture
def job(tmp_path: Path) -> Job:
    registry = Registry.discover()
    save_tiny(tmp_path / "model", hidden=64)
    task = {"task": "arith", "problems": 10, "steps": [1, 2], "max_new_tokens": 8, "limit": 6, "batch": 2}
    plan = eval_plan(registry, str(tmp_path / "model"), [task | {"temperature": 0.7, "seeds": [0, 1]}])
    job = Job(plan, tmp_path / "run", registry)
    job.workdir(plan.steps[0]).mkdir(parents=True)
    return job


def test_an_interrupted_evaluation_by_the_engine_ends_with_the_same_samples(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "writer_for", lambda model, chosen: Engine(model))
    step = job.plan.steps[0]
    work = job.workdir(step)
    assert evaluate.run(job, step)["backend"] == "engine"
    expected = (work / "samples.jsonl").read_bytes()
    shutil.rmtree(job.scratch(step))
    # Of three batches of two problems, this one gets two together, then one.
    monkeypatch.setattr(evaluate, "writer_for", lambda model, chosen: Engine(model, rows=1))
    original = harness.Generator.complete
    calls = []

    def complete(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(arguments[0]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(harness.Generator, "complete", complete)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(job, step)
    evaluate.run(job, step)
    assert calls == [4, 2, 4, 2, 2]
    assert (work / "samples.jsonl").read_bytes() == expected


def test_batches_of_another_backend_are_written_anew(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    step = job.plan.steps[0]
    work = job.workdir(step)
    evaluate.run(job, step)
    expected = (work / "samples.jsonl").read_bytes()
    original = harness.Generator.complete
    calls: list[int] = []

    def complete(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(harness.Generator, "complete", complete)
    with monkeypatch.context() as change:
        change.setattr(evaluate, "writer_for", lambda model, chosen: Engine(model, rows=1))
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(job, step)
    assert evaluate.run(job, step)["backend"] == "transformers"
    assert len(calls) == 3 + 6
    assert (work / "samples.jsonl").read_bytes() == expected


def test_out_of_memory_is_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "writer_for", lambda model, chosen: Engine(model))
    monkeypatch.setattr(Engine, "write", no_memory)
    with pytest.raises(ModelError, match="Out of memory while generating 6 completions") as found:
        evaluate.run(job, job.plan.steps[0])
    assert "fewer new tokens" in str(found.value.hint)
    monkeypatch.setattr(evaluate, "writer_for", lambda model, chosen: TransformersWriter(model))
    monkeypatch.setattr(TransformersWriter, "write", no_memory)
    with pytest.raises(ModelError, match="Out of memory while generating 2 completions") as found:
        evaluate.run(job, job.plan.steps[0])
    assert "smaller batch: 1" in str(found.value.hint)
    with pytest.raises(ModelError, match="Out of memory while generating 2 completions of up to 5 tokens") as found:
        sampled(tiny_model(), Engine(tiny_model()), ["1+1="], 2, Sampling(5, 1.0))
    assert found.value.hint


def sampled(model: Any, writer: Any, texts: list[str], samples: int, sampling: Sampling, **more: Any) -> Any:
    tokenizer = tiny_tokenizer()
    prompts = encode_prompts([{"prompt": text} for text in texts], tokenizer)
    return sample(Generator(model, tokenizer, sampling, writer), prompts, samples, **more)


def test_the_gates_samples_in_the_order_of_the_prompts() -> None:
    """So cold that sampling is greedy: then the samples are those of transformers, several of each prompt."""
    prompts = ["1+1=", "what is 12+34? ", "9="]
    done: list[int] = []
    model = tiny_model()
    expected = sampled(model, TransformersWriter(model, rows=6, piece=None), prompts, 3, Sampling(6, 1e-4))
    found = sampled(model, Engine(model), prompts, 3, Sampling(6, 1e-4), advance=done.append)
    assert found == expected
    assert done == sorted(done)


def test_commands_say_who_wrote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    answers, samples = [], []
    for name in ("transformers", "engine"):
        if name == "engine":
            monkeypatch.setattr(evaluate, "writer_for", lambda model, chosen: Engine(model))
        more = ["--limit", "3", "--set", "max_new_tokens=30", "-o", name]
        result = CliRunner().invoke(build(), ["eval", "arith", "builtin:tiny-reasoner", *more])
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / name / "results.json").read_text())["backend"] == name
        samples.append((tmp_path / name / "samples.jsonl").read_text())
        asked = ["generate", "builtin:tiny-reasoner", "1+2=", "--max-new-tokens", "9"]
        answers.append(CliRunner().invoke(build(), asked).stdout)
    assert samples[0] == samples[1]
    assert answers[0] == answers[1] != ""
