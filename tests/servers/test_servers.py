"""Servers really started on our files: what they answer is what the table says. Run with `pytest -m servers`.

Each server needs its environment: `python -m tests.servers.environments`. What was not built is skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rqat import ROW, ModelError, Scheme
from rqat.keys import ModelKeys
from rqat.model.checkpoint import load_checkpoint
from rqat.model.foreign_layers import load_foreign
from rqat.model.hub import resolve
from rqat.model.reader import CheckpointReader
from rqat.model.stored_schemes import stored_schemes
from rqat.registry import Registry
from rqat.servers import seen, trials
from rqat.storage import read_json, read_json_lines
from rqat_gguf import Options
from tests.rqat.cli.test_commands import rqat

from .environments import SERVERS, python_of
from .files import byte_tokenizer, export, last_logits, logits_of, prompts, save_rounded, small_model
from .serving import vllm
from .table import PLAIN, TOLERANCE, accepted, difference, probe

pytestmark = pytest.mark.servers

TINY = "builtin:tiny-reasoner"

PAIRS = [(server, form) for server, each in SERVERS.items() for form in each.formats]


@pytest.mark.parametrize(("server", "format_name"), PAIRS)
def test_the_table_says_what_a_server_does(tmp_path: Path, server: str, format_name: str) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    known = {(t.bits, t.symmetric, t.group): t.loads for t in trials() if (t.server, t.format) == (server, format_name)}
    if format_name == PLAIN:
        known = dict.fromkeys([(2, False, 64), (3, True, ROW), (4, False, 128), (8, True, 32)], True)
    spellings = [text for text in ("w2g64", "w3-row-sym", "w4g128", "w8g32-sym") if accepted(format_name, text)]
    starts = [save_rounded(tmp_path / text, text) for text in spellings]
    folders = [tmp_path / f"{text}-out" for text in spellings]
    for start, folder in zip(starts, folders, strict=True):
        export(start, folder, format_name)
    for text, start, answer in zip(spellings, starts, probe(server, folders, prompts()), strict=True):
        scheme = Scheme.parse(text)
        right = answer["loads"] and difference(answer, last_logits(start)) < TOLERANCE
        assert right == known[scheme.bits, scheme.symmetric, scheme.group], (text, answer.get("words"))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("server", "format_name"), [("llama.cpp", "gguf"), ("mlx-lm", "mlx")])
def test_families_tied_or_not_with_ends_of_their_own(
    tmp_path: Path, server: str, format_name: str, family: str
) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    starts, folders = [], []
    for tied in (True, False):
        starts.append(save_rounded(tmp_path / f"{tied}", "w3g64", family, ends="w8g32-sym", tied=tied))
        folders.append(tmp_path / f"{tied}-out")
        export(starts[-1], folders[-1], format_name)
    for start, answer in zip(starts, probe(server, folders, prompts()), strict=True):
        assert answer["loads"], answer.get("words")
        assert difference(answer, last_logits(start)) < TOLERANCE


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "phi3", "smollm3"])
def test_mlx_computes_families_of_other_layouts(tmp_path: Path, family: str) -> None:
    if python_of("mlx-lm") is None:
        pytest.skip("mlx-lm is not built")
    more: dict[str, object] = {"gemma3_text": {"sliding_window_pattern": 2, "sliding_window": 5}}.get(family, {})
    start = save_rounded(tmp_path / "start", "w4g32-sym", family, tied=family == "gemma3_text", **more)
    export(start, tmp_path / "out", "mlx")
    (answer,) = probe("mlx-lm", [tmp_path / "out"], prompts())
    assert answer["loads"], answer.get("words")
    assert difference(answer, last_logits(start)) < TOLERANCE


MORE: dict[str, dict[str, object]] = {
    "gemma3_text": {"sliding_window_pattern": 2, "sliding_window": 5},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
}


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "phi3", "smollm3", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize(
    ("server", "format_name"), [pair for pair in PAIRS if pair[1] in ("compressed-tensors", "gptq", "awq")]
)
def test_families_of_other_layouts_are_read_as_the_plan_says(
    tmp_path: Path, server: str, format_name: str, family: str
) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    tied = family == "gemma3_text"
    start = save_rounded(tmp_path / "start", "w4g128-sym", family, tied=tied, **MORE.get(family, {}))
    export(start, tmp_path / "out", format_name)
    (answer,) = probe(server, [tmp_path / "out"], prompts())
    known = {"model.layers.0.mlp.down_proj": Scheme.parse("w4g128-sym")}
    told = next(each for each in seen(format_name, known, family=family) if each.server == server)
    assert (answer["loads"] and difference(answer, last_logits(start)) < TOLERANCE) == told.loads, answer.get("words")


@pytest.mark.parametrize(("server", "format_name"), [("llama.cpp", "gguf"), ("mlx-lm", "mlx")])
def test_biases_in_the_attention_of_qwen3_are_refused_there_as_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, format_name: str
) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    start = save_rounded(tmp_path / "start", "w4g128-sym", attention_bias=True)
    with pytest.raises(ModelError, match="no biases in the attention"):
        export(start, tmp_path / "out", format_name)
    options = Registry.current().options(Registry.current().card("exporter", format_name), {})
    monkeypatch.setattr(type(options), "check", lambda self, context: iter(()))
    export(start, tmp_path / "out", format_name)
    (answer,) = probe(server, [tmp_path / "out"], prompts())
    assert not answer["loads"]


@pytest.mark.parametrize(
    ("server", "format_name", "reads"),
    [
        ("transformers", "compressed-tensors", True),
        ("transformers", "gptq", False),
        ("gptqmodel", "gptq", True),
        ("vllm", "compressed-tensors", False),
        ("vllm", "gptq", True),
    ],
)
def test_who_reads_a_quantized_head(tmp_path: Path, server: str, format_name: str, reads: bool) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    scheme = "w4g128-sym"
    start = save_rounded(tmp_path / "start", scheme, ends=scheme, tied=False)
    export(start, tmp_path / "out", format_name)
    (answer,) = probe(server, [tmp_path / "out"], prompts())
    assert (answer["loads"] and difference(answer, last_logits(start)) < TOLERANCE) == reads, answer.get("words")
    known = {"model.layers.0.mlp.up_proj": Scheme.parse(scheme), "lm_head": Scheme.parse(scheme)}
    assert next(each.loads for each in seen(format_name, known) if each.server == server) == reads


@pytest.mark.parametrize(
    ("server", "format_name"), [pair for pair in PAIRS if pair[1] in ("compressed-tensors", "gptq", "awq")]
)
def test_layers_that_are_left_out_are_left_out_there(tmp_path: Path, server: str, format_name: str) -> None:
    if python_of(server) is None:
        pytest.skip(f"{server} is not built")
    start = save_rounded(tmp_path / "start", "w4g128-sym", skip="down_proj")
    export(start, tmp_path / "out", format_name)
    (answer,) = probe(server, [tmp_path / "out"], prompts())
    assert answer["loads"], answer.get("words")
    assert difference(answer, last_logits(start)) < TOLERANCE


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("tied", [True, False])
def test_what_mlx_lm_quantized_is_where_training_begins(tmp_path: Path, bits: int, tied: bool) -> None:
    """In float16, which rounds a bias by a 2048th: half of an eighth of a step at 8 bits, less below."""
    python = python_of("mlx-lm")
    if python is None:
        pytest.skip("mlx-lm is not built")
    small_model(tied=tied).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    settings = ["-q", "--q-bits", bits, "--q-group-size", 32, "--dtype", "float16"]
    command = [python, "-m", "mlx_lm", "convert", "--hf-path", tmp_path / "model", "--mlx-path", tmp_path / "theirs"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*map(str, [*command, *settings])], check=True, env=environment, capture_output=True)
    found = load_foreign(tmp_path / "theirs")
    assert set(map(str, stored_schemes(tmp_path / "theirs").values())) == {f"w{bits}g32"}
    assert len(found.layers) == 14 + 1 + (not tied)
    (answer,) = probe("mlx-lm", [tmp_path / "theirs"], prompts())
    assert difference(answer, logits_of(found.model)) < TOLERANCE


def test_llama_cpp_cuts_texts_up_as_we_do(tmp_path: Path) -> None:
    from .files import TEXTS

    if python_of("llama.cpp") is None:
        pytest.skip("llama.cpp is not built")
    export(save_rounded(tmp_path / "start", "w4g32"), tmp_path / "out", "gguf")
    (by_ids,), (by_text,) = (probe("llama.cpp", [tmp_path / "out"], each) for each in (prompts(), list(TEXTS)))
    assert by_ids["logprobs"] == by_text["logprobs"]


@pytest.mark.parametrize(("scheme", "ends"), [("w2g64", "w3g64-sym"), ("w3g128", "w2g32")])
def test_llama_cpp_decodes_k_types_as_they_were_meant(tmp_path: Path, scheme: str, ends: str) -> None:
    """The model is the one that the package gguf decodes from the file: near the trained one, not the same."""
    if python_of("llama.cpp") is None:
        pytest.skip("llama.cpp is not built")
    start = save_rounded(tmp_path / "start", scheme, ends=ends)
    export(start, tmp_path / "out", "gguf", types="k")
    (answer,) = probe("llama.cpp", [tmp_path / "out"], prompts())
    assert answer["loads"], answer.get("words")
    model, reader = load_checkpoint(start).model, CheckpointReader(start)
    exporter = Registry.current().make(Registry.current().card("exporter", "gguf"), Options(types="k"))
    for name, values in exporter.values(tmp_path / "out", reader):
        model.get_parameter(f"{name}.weight").data.copy_(values)
    assert difference(answer, logits_of(model)) < TOLERANCE


def test_vllm_refuses_layers_torn_apart(tmp_path: Path) -> None:
    if python_of("vllm") is None:
        pytest.skip("vllm is not built")
    start = save_rounded(tmp_path / "start", "w4g128", skip="q_proj")
    export(start, tmp_path / "out", "compressed-tensors")
    (answer,) = probe("vllm", [tmp_path / "out"], prompts())
    assert not answer["loads"]
    assert answer["words"]


def test_arith_behind_vllm_is_judged_as_in_process(tmp_path: Path) -> None:
    """In float32 on both sides; of 40 problems 36 is the line that another server was held to, too."""
    if python_of("vllm") is None:
        pytest.skip("vllm is not built")
    model = resolve(ModelKeys(path=TINY))
    assert model is not None
    asked = ("eval", "arith", TINY, "--limit", 40, "--greedy", "--json")
    with vllm(model, tmp_path, "--dtype", "float32", "--max-model-len", "1024") as url:
        served = rqat(*asked, "--base-url", url, "--batch", 8, "-o", tmp_path / "served")
    assert served.exit_code == 0, served.stderr
    here = rqat(*asked, "-o", tmp_path / "here")
    assert here.exit_code == 0, here.stderr
    results = [read_json(tmp_path / name / "results.json") for name in ("served", "here")]
    assert results[0]["prompt_hash"] == results[1]["prompt_hash"]
    assert results[0]["backend"] == "server"
    samples = [read_json_lines(tmp_path / name / "samples.jsonl") for name in ("served", "here")]
    equal = [one["verdict"] == other["verdict"] for one, other in zip(*samples, strict=True)]
    texts = [one["completion"] == other["completion"] for one, other in zip(*samples, strict=True)]
    print(f"{sum(equal)} verdicts and {sum(texts)} texts of {len(equal)} are equal; {results[0]['correct']} right")
    assert len(equal) == 40
    assert sum(equal) >= 36
    assert results[1]["correct"] > 30, "a model that solves nothing would agree with anything"
    compared = rqat("compare", tmp_path / "here", tmp_path / "served")
    assert compared.exit_code == 0, compared.stderr
    assert "written by different backends" in compared.stdout
