"""The exporter `mlx`: a folder whose `quantization` MLX understands, exact where float16 holds the biases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rqat import Context, ModelError, QuantizedWeight, Scheme
from rqat.contracts import ModelShape
from rqat.registry import Registry
from tests.servers.files import export, last_logits, logits_of, save_rounded


def written(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def test_layers_with_other_sizes_are_named(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w2g64", ends="w8g32-sym", tied=False)
    facts = export(start, tmp_path / "out", "mlx")
    config, tensors = written(tmp_path / "out")
    assert facts["decoded"] == "every weight equal, bit by bit"
    eight = {"group_size": 32, "bits": 8}
    assert config["quantization"] == {
        "group_size": 64, "bits": 2, "mode": "affine", "model.embed_tokens": eight, "lm_head": eight,
    }  # fmt: skip
    assert "quantization_config" not in config
    assert {tensor.dtype for name, tensor in tensors.items() if not name.endswith("proj.weight")} <= {
        torch.float16, torch.uint32,
    }  # fmt: skip
    assert tensors["model.embed_tokens.weight"].dtype == torch.uint32
    assert "mlx_lm.server" in (tmp_path / "out" / "README.md").read_text()


def test_rows_become_groups_that_mlx_has(tmp_path: Path) -> None:
    facts = export(save_rounded(tmp_path / "start", "w3-row"), tmp_path / "out", "mlx")
    config, tensors = written(tmp_path / "out")
    assert (config["quantization"]["group_size"], facts["decoded"]) == (128, "every weight equal, bit by bit")
    scales = tensors["model.layers.0.mlp.up_proj.scales"]
    assert scales.shape == (512, 2)
    assert torch.equal(scales[:, 0], scales[:, 1])


@pytest.mark.parametrize(
    ("scheme", "dtype", "most"), [("w4g32", "float16", 0.01), ("w8g32", "float16", 0.1), ("w3g64", "bfloat16", 0.02)]
)
def test_what_rounding_costs_is_measured(tmp_path: Path, scheme: str, dtype: str, most: float) -> None:
    facts = export(save_rounded(tmp_path / "start", scheme), tmp_path / "out", "mlx", dtype=dtype)
    told = str(facts["decoded"])
    assert told.startswith("weights differ by ")
    assert 0 < float(told.split()[3]) < most
    assert written(tmp_path / "out")[1]["model.norm.weight"].dtype == getattr(torch, dtype)


def test_what_does_not_read_the_folder_says_so(tmp_path: Path) -> None:
    from rqat.keys import ModelKeys
    from rqat.model.load import load_model

    export(save_rounded(tmp_path / "start", "w2g64"), tmp_path / "out", "mlx")
    model, _ = load_model(ModelKeys(path=str(tmp_path / "out")), quantizable=False)
    expected = last_logits(tmp_path / "start")  # read by rqat, where transformers does not; float16 beside the codes
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization"]["mode"] = "mxfp4"
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="an MLX checkpoint of a kind that neither transformers loads nor rqat"):
        load_model(ModelKeys(path=str(tmp_path / "out")), quantizable=False)
    with pytest.raises(ModelError, match=r"quantized already \(mlx\)"):
        load_model(ModelKeys(path=str(tmp_path / "out")))
    export(tmp_path / "start", tmp_path / "file", "gguf")
    with pytest.raises(ModelError, match=r"It holds a GGUF file, which llama\.cpp loads"):
        load_model(ModelKeys(path=str(tmp_path / "file")), quantizable=False)


def test_values_beyond_float16_are_told() -> None:
    from rqat_mlx import Mlx, Options

    with pytest.raises(ModelError, match="beyond float16") as error:
        Mlx(Options()).other("model.norm.weight", torch.tensor([7e4]))
    assert "bfloat16" in error.value.hint
    assert Mlx(Options(dtype="bfloat16")).other("model.norm.weight", torch.tensor([7e4])).isfinite().all()


def test_a_bias_beyond_float16_is_told_though_its_scale_is_not() -> None:
    from rqat_mlx import Mlx, Options

    scheme = Scheme.parse("w4g32-sym")
    codes, zero = torch.zeros(1, 32, dtype=torch.uint8), torch.full((1, 1), 8, dtype=torch.uint8)
    layer = QuantizedWeight(codes, torch.tensor([[1.6e4]]), zero, scheme=scheme)
    with pytest.raises(ModelError, match="a has values beyond float16") as error:
        Mlx(Options()).tensors("a", layer)
    assert "--format mlx:dtype=bfloat16" in error.value.hint
    assert Mlx(Options(dtype="bfloat16")).tensors("a", layer)["a.biases"].isfinite().all()


def problems(family: str, **config: object) -> list[str]:
    registry = Registry.current()
    settings = {"num_hidden_layers": 2, "max_position_embeddings": 512, **config}
    model = ModelShape("m", family, {"a": (64, 64)}, 64, 8, 2, True, 512, config=settings)
    options = registry.options(registry.card("exporter", "mlx"), {})
    return [problem.text for problem in options.check(Context(schemes={"a": Scheme.parse("w4g32")}, model=model))]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True}),
    ],
)
def test_windows_that_mlx_passes_over_are_told(family: str, config: dict) -> None:
    """Seen by running it: log-probabilities behind a window were 18 to 55 % apart."""
    (text,) = problems(family, **config)
    assert "sliding window of 8" in text
    assert not problems(family, **config | {"sliding_window": 512}), "no text is longer"
    assert not problems(family, **config | {"sliding_window": None})


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("qwen3", {"attention_bias": True}, "no biases in the attention of qwen3"),
        ("gemma3_text", {"attention_bias": True, "sliding_window_pattern": 2}, "no biases in the attention of gemma3"),
        ("gemma3_text", {"hidden_activation": "silu", "sliding_window_pattern": 2}, "computes gelu_pytorch_tanh"),
        ("llama", {"hidden_act": "gelu"}, "computes silu where this model has hidden_act gelu"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "of the kind 'linear' in phi3"),
    ],
)
def test_parts_of_a_model_that_mlx_does_not_have_are_told(family: str, config: dict, says: str) -> None:
    """It refuses biases it does not expect (test_servers.py), and computes its own function whatever is asked for."""
    (text,) = problems(family, **config)
    assert says in text


def test_parts_of_a_model_that_mlx_has() -> None:
    assert not problems("llama", attention_bias=True, mlp_bias=True, hidden_act="silu")
    assert not problems("qwen2", attention_bias=True)
    assert not problems("gemma3_text", hidden_activation="gelu_pytorch_tanh", sliding_window_pattern=2)
    assert not problems("llama", rope_parameters={"rope_type": "linear", "factor": 2.0})


def test_of_gemma_every_nth_block_sees_all_tokens() -> None:
    sliding, full = "sliding_attention", "full_attention"
    assert not problems("gemma3_text", layer_types=[sliding, full], sliding_window=8)
    assert not problems("gemma3_text", sliding_window_pattern=2)
    assert "every n-th block" in problems("gemma3_text", layer_types=[full, sliding])[0]
    assert "every n-th block" in problems("gemma3_text")[0], "two blocks, of which each sixth"
    assert "longrope" in problems("phi3", rope_scaling={"type": "longrope", "short_factor": [1.0]})[0]
