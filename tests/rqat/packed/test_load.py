"""A packed model is the checkpoint: the same logits as by transformers; one line for what cannot be packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import rqat
from rqat import ModelError, Scheme
from rqat.cli.app import build
from rqat.generation.backend import open_model
from rqat.keys import ModelKeys
from rqat.model.checkpoint import save_checkpoint
from rqat.packed.load import load_packed
from rqat.testing.tiny import decoded, rounded_layers, tiny_model
from rqat_kernels.packed_linear import PackedLinear
from tests.tiny import save_tiny

COMMON = ["quantize", "--method", "rtn"]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`exports(scheme, format)`: a tiny model, rounded and exported; made once."""
    root = tmp_path_factory.mktemp("exports")
    made: dict[tuple[str, str, bool, int], Path] = {}

    def export(scheme: str, format_name: str = "compressed-tensors", tied: bool = True, context: int = 512) -> Path:
        key = (scheme, format_name, tied, context)
        if key not in made:
            source = save_tiny(root / f"tiny-{tied}-{context}", tied=tied, context=context)
            folder = root / "-".join(map(str, key))
            arguments = [*COMMON, str(source), "--scheme", scheme, "--format", format_name, "-o", str(folder)]
            result = CliRunner().invoke(build(), arguments)
            assert result.exit_code == 0, result.output
            made[key] = folder
        return made[key]

    return export


@pytest.fixture(autouse=True)
def _on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """There everything is exact, or equal to the bit; so only tests marked for a GPU see one."""
    if request.node.get_closest_marker("cuda") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def tokens() -> torch.Tensor:
    return torch.randint(100, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", ["w2g128", "w3g32-sym", "w4g64", "w3-row", "w4g64-sym", "w2g8"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers_to_the_bit(exports: Any, scheme: str, tied: bool) -> None:
    folder = exports(scheme, tied=tied)
    model, tokenizer = rqat.load_packed(folder)
    expected, other = open_model(ModelKeys(path=str(folder)), device="cpu", offline=True)
    assert torch.equal(model(tokens()).logits, expected(tokens()).logits)
    assert tokenizer.get_vocab() == other.get_vocab()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 14
    assert {module.bits for module in packed} == {Scheme.parse(scheme).bits}
    assert not model.training


@pytest.mark.parametrize(
    ("scheme", "format_name"),
    [(scheme, "gptq") for scheme in ("w2g32", "w3g64-sym", "w4-row", "w4g128-sym")]
    + [(scheme, "awq") for scheme in ("w4-row", "w4g128-sym")],
)
def test_gptq_and_awq_need_no_other_package_and_have_the_same_logits(
    exports: Any, scheme: str, format_name: str
) -> None:
    packed, _ = load_packed(exports(scheme, format_name))
    expected, _ = open_model(ModelKeys(path=str(exports(scheme))), device="cpu", offline=True)
    assert torch.equal(packed(tokens()).logits, expected(tokens()).logits)


def test_a_step_of_a_run_is_packed_too(tmp_path: Path) -> None:
    model, tokenizer = tiny_model()
    layers = rounded_layers(model)
    with torch.no_grad():
        for name, layer in layers.items():
            model.get_parameter(f"{name}.weight").copy_(decoded(layer))
    save_checkpoint(tmp_path, model, tokenizer, layers)
    packed, _ = load_packed(tmp_path)
    expected, _ = open_model(ModelKeys(path=str(tmp_path)), device="cpu", offline=True)
    assert isinstance(packed.get_submodule("model.layers.0.mlp.up_proj"), PackedLinear)
    assert torch.equal(packed(tokens() % 99).logits, expected(tokens() % 99).logits)


@pytest.mark.parametrize("scheme", ["w2g32", "w4g64", "w3-row"])
def test_one_row_in_float32_reads_packed_weights(exports: Any, scheme: str) -> None:
    """As exact as kernels for GPUs are in float32; no dense copy is made."""
    packed, _ = load_packed(exports(scheme))
    expected, _ = open_model(ModelKeys(path=str(exports(scheme))), device="cpu", offline=True)
    found, right = packed(tokens()[:1, :1]).logits, expected(tokens()[:1, :1]).logits
    assert (found - right).norm() <= 2e-5 * right.norm()
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    assert layers
    assert not any(layer._dense for layer in layers)


@pytest.mark.parametrize("scheme", ["w2g32", "w3g64", "w4g32-sym"])
def test_bfloat16_on_the_cpu(exports: Any, scheme: str) -> None:
    """Outputs of every layer are rounded to bfloat16 (2**-9)."""
    packed, _ = load_packed(exports(scheme), dtype=torch.bfloat16)
    exact, _ = open_model(ModelKeys(path=str(exports(scheme))), device="cpu", offline=True)
    for rows in (tokens()[:1, :3], tokens()):
        found, expected = packed(rows).logits.float(), exact(rows).logits
        assert (found - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("format_name", ["compressed-tensors", "gptq"])
def test_on_a_gpu(exports: Any, format_name: str) -> None:
    packed, _ = load_packed(exports("w2g128", format_name))
    assert packed.dtype == torch.bfloat16
    assert packed.device.type == "cuda"
    exact, _ = load_packed(exports("w2g128", format_name), "cpu")
    found, expected = packed(tokens().cuda()).logits.float().cpu(), exact(tokens()).logits
    assert (found - expected).norm() <= 0.03 * expected.norm()
    answer = run("generate", exports("w2g128", format_name), "1+2=", "--max-new-tokens", 20, "--backend", "packed")
    assert answer.exit_code == 0, answer.output
    more = ["--limit", 3, "--batch", 2, "--set", "max_new_tokens=8", "--backend", "packed", "-o", "found"]
    result = run("eval", "arith", exports("w2g128", format_name), *more)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("found/results.json").read_text())["n"] == 3


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.fixture
def broken(exports: Any, tmp_path: Path) -> Callable[..., Path]:
    """`broken(change, format)`: a copy of an export whose config or tensors were changed."""

    def make(
        config: Callable[[dict[str, Any]], Any] | None = None,
        tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
        format_name: str = "compressed-tensors",
    ) -> Path:
        folder = Path(shutil.copytree(exports("w4g64", format_name), tmp_path / "own"))
        if config:
            raw = json.loads((folder / "config.json").read_text())
            config(raw)
            (folder / "config.json").write_text(json.dumps(raw))
        if tensors:
            state = load_file(folder / "model.safetensors")
            tensors(state)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def quantization(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["quantization_config"].update(changes)


def weights(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("format_name", "config", "tensors", "says"),
    [
        ("compressed-tensors", quantization(quant_method="hqq"), None, "stored as 'hqq'"),
        ("compressed-tensors", quantization(format="marlin-24"), None, "format 'marlin-24'"),
        ("compressed-tensors", weights(num_bits=8), None, "weights of 8 bits"),
        ("compressed-tensors", weights(type="float"), None, "type float"),
        ("compressed-tensors", weights(strategy="block"), None, "strategy block"),
        ("compressed-tensors", weights(actorder="group"), None, "actorder group"),
        ("compressed-tensors", weights(num_bits=3), None, "words for 256 values of 3 bits"),
        ("gptq", quantization(bits=8), None, "weights of 8 bits"),
        ("gptq", quantization(checkpoint_format="marlin"), None, "checkpoint_format 'marlin'"),
        ("awq", quantization(version="gemv"), None, "awq of version gemv"),
        ("gptq", None, lambda state: state[f"{Q}.g_idx"].copy_(state[f"{Q}.g_idx"].flip(0)), "in another order"),
        ("gptq", None, lambda state: state.pop(f"{Q}.qzeros"), "qzeros is missing"),
        ("compressed-tensors", None, lambda state: state.pop(f"{Q}.weight_scale"), "weight_scale is missing"),
        ("compressed-tensors", None, lambda state: state.pop("model.norm.weight"), "model.norm.weight is missing"),
        ("compressed-tensors", None, lambda state: state.update(more=torch.ones(2)), "more is unknown"),
        (
            "compressed-tensors",
            None,
            lambda state: state.update({f"{Q}.weight_scale": state[f"{Q}.weight_scale"][:, :1].clone()}),
            "is damaged: " + Q,
        ),
        ("compressed-tensors", lambda raw: raw.update(intermediate_size=128), None, "is 128 x 256, and 128 x 128"),
        ("compressed-tensors", lambda raw: raw.update(model_type="gemma"), None, "family 'gemma'"),
        ("compressed-tensors", lambda raw: raw.pop("quantization_config"), None, "has no quantization_config"),
    ],
)
def test_what_cannot_be_packed_is_named(
    broken: Any, format_name: str, config: Any, tensors: Any, says: str, tmp_path: Path
) -> None:
    folder = broken(config, tensors, format_name)
    with pytest.raises(ModelError) as found:
        load_packed(folder)
    assert says in found.value.message
    assert "\n" not in found.value.message
    assert found.value.hint


def test_no_such_device(exports: Any) -> None:
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ModelError, match=f"no device '{name}'"):
            load_packed(exports("w4g64"), name)


def test_a_file_that_was_cut_off(broken: Any) -> None:
    folder = broken()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"was cut off|is damaged"):
        load_packed(folder)


# ------------------------------------------------------------------------------------------------- the command line


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build(), list(map(str, arguments)))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def test_generate_says_the_same_with_both_backends(exports: Any) -> None:
    answers = [
        run("generate", exports("w4g64"), "1+2=", "--max-new-tokens", 12, "--backend", backend)
        for backend in ("transformers", "packed")
    ]
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert answers[0].stdout == answers[1].stdout != ""


def test_eval_finds_the_same_with_both_backends(exports: Any) -> None:
    found = []
    for backend in ("transformers", "packed"):
        more = ["--limit", 3, "--batch", 2, "--set", "max_new_tokens=8", "--backend", backend, "-o", backend]
        result = run("eval", "arith", exports("w4g64"), *more)
        assert result.exit_code == 0, result.output
        results = json.loads((Path(backend) / "results.json").read_text())
        assert results["backend"] == backend
        samples = (Path(backend) / "samples.jsonl").read_text()
        found.append((samples, results["accuracy"], results["truncated"], results["mean_tokens"]))
    assert found[0] == found[1]


def test_the_packed_backend_refuses_a_model_that_is_not_quantized() -> None:
    for command in (["generate", "builtin:tiny-reasoner", "1+2="], ["eval", "arith", "builtin:tiny-reasoner"]):
        result = run(*command, "--backend", "packed")
        assert result.exit_code == 2
        assert "is not quantized" in result.stderr
        assert "--backend transformers" in result.stderr
        assert not list(Path().iterdir())


def test_a_task_of_lm_eval_runs_on_packed_weights(exports: Any, tmp_path: Path) -> None:
    row = {"question": "What is 1 + 2?", "answer": "It is <<1+2=3>>3\n#### 3"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(6 * f"{json.dumps(row)}\n")
    more = ["--limit", 2, "--data", tmp_path, "--set", "max_new_tokens=4", "--backend", "packed", "-o", "found"]
    result = run("eval", "lm-eval:gsm8k", exports("w4g64", context=4096), *more)
    assert result.exit_code == 0, result.output
    assert json.loads(Path("found/results.json").read_text())["n"] == 2
