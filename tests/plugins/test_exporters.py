"""Checkpoint formats: what an exporter writes it can decode, and its config is one its readers accept."""

import pytest
import torch

import rqat_compressed_tensors
import rqat_gptq_format
from rqat import Context, ModelError, Options, QuantizedWeight, Scheme
from rqat.contracts import ModelShape
from rqat.registry import Registry
from rqat_kernels.grid import dequantize, fit_minmax, quantize

SCHEMES = [f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g128", "-row") for sym in ("", "-sym")]
OUT, IN = 96, 256


def quantized(scheme: Scheme, out: int = OUT, width: int = IN, shift: float = 0.0) -> QuantizedWeight:
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(0)) + shift
    scale, zero = fit_minmax(weight, scheme.groups(width), scheme.max_code, symmetric=scheme.symmetric)
    return QuantizedWeight(quantize(weight, scale, zero, scheme.max_code), scale, zero.to(torch.uint8), scheme=scheme)


def assert_same(decoded: QuantizedWeight, weight: QuantizedWeight) -> None:
    for part in ("codes", "scale", "zero"):
        found, expected = getattr(decoded, part), getattr(weight, part)
        assert found.dtype == expected.dtype, part
        assert torch.equal(found, expected), part


def compressed_tensors() -> rqat_compressed_tensors.CompressedTensors:
    return rqat_compressed_tensors.CompressedTensors(Options())


def gptq(checkpoint_format: str = "auto") -> rqat_gptq_format.Gptq:
    return rqat_gptq_format.Gptq(rqat_gptq_format.Options.model_validate({"checkpoint_format": checkpoint_format}))


def test_both_are_registered() -> None:
    registry = Registry.discover()
    for name, kind in (
        ("compressed-tensors", rqat_compressed_tensors.CompressedTensors),
        ("gptq", rqat_gptq_format.Gptq),
    ):
        card = registry.card("exporter", name)
        assert isinstance(registry.make(card, registry.options(card, {})), kind)


@pytest.mark.parametrize("spelling", SCHEMES)
@pytest.mark.parametrize("exporter", [compressed_tensors(), gptq()], ids=["compressed-tensors", "gptq"])
def test_decode_inverts_tensors(exporter, spelling: str) -> None:
    scheme = Scheme.parse(spelling)
    weight = quantized(scheme)
    tensors = exporter.tensors("a.b", weight)
    assert all(name.startswith("a.b.") for name in tensors)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert_same(exporter.decode("a.b", tensors, scheme), weight)


@pytest.mark.parametrize("spelling", SCHEMES)
def test_compressed_tensors_library_decodes_to_the_same_weights(spelling: str) -> None:
    """Its decompressor, given our tensors and config, finds `w_hat`: exact in float32, one rounding in bfloat16."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    scheme = Scheme.parse(spelling)
    weight = quantized(scheme)
    exporter = compressed_tensors()
    config = quantization.QuantizationConfig.model_validate(exporter.config({"a": scheme}, ["lm_head"]))
    tensors = {name.removeprefix("a."): tensor for name, tensor in exporter.tensors("a", weight).items()}
    for dtype in (torch.float32, torch.bfloat16):
        tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
        decompressed = compressors.PackedQuantizationCompressor.decompress(tensors, config.config_groups["group_0"])
        assert torch.equal(decompressed["weight"], dequantize(weight.codes, weight.scale, weight.zero, dtype))


@pytest.mark.parametrize("spelling", ["w2g128", "w3-row-sym", "w3-row"])
def test_compressed_tensors_takes_any_shape(spelling: str) -> None:
    scheme = Scheme.parse(spelling)
    weight = quantized(scheme, out=5, width=128 if scheme.group > 0 else 77)
    exporter = compressed_tensors()
    assert_same(exporter.decode("a", exporter.tensors("a", weight), scheme), weight)


def test_compressed_tensors_leaves_out_zero_points_of_symmetric_weights() -> None:
    """vLLM refuses them there."""
    scheme = Scheme.parse("w4g32-sym")
    assert set(compressed_tensors().tensors("a", quantized(scheme))) == {
        "a.weight_packed",
        "a.weight_scale",
        "a.weight_shape",
    }


def test_gptq_layout() -> None:
    scheme = Scheme.parse("w3g32-sym")
    tensors = gptq().tensors("a", quantized(scheme))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()} == {
        "a.qweight": ((IN * 3 // 32, OUT), torch.int32),
        "a.qzeros": ((IN // 32, OUT * 3 // 32), torch.int32),
        "a.scales": ((IN // 32, OUT), torch.float16),
        "a.g_idx": ((IN,), torch.int32),
    }
    assert tensors["a.g_idx"].tolist() == [index // 32 for index in range(IN)]


def test_gptq_version_1_stores_zero_points_minus_one() -> None:
    scheme = Scheme.parse("w4g32-sym")
    word = gptq().tensors("a", quantized(scheme))["a.qzeros"][0, 0].item()
    assert word == 0x77777777
    assert gptq().config({"a": scheme}, ["lm_head"])["checkpoint_format"] == "gptq"


def test_gptq_version_2_holds_a_zero_point_of_0_and_version_1_refuses_it() -> None:
    scheme = Scheme.parse("w2g32")
    weight = quantized(scheme, shift=10.0)
    assert not weight.zero.any()
    assert_same(gptq().decode("a", gptq().tensors("a", weight), scheme), weight)
    assert gptq().config({"a": scheme}, ["lm_head"])["checkpoint_format"] == "gptq_v2"
    with pytest.raises(ModelError, match="zero point 0") as error:
        gptq("gptq").tensors("a", weight)
    assert "gptq_v2" in error.value.hint


def test_gptq_version_1_can_be_asked_for() -> None:
    scheme = Scheme.parse("w3g32")
    weight = quantized(scheme)
    assert weight.zero.all()
    assert_same(gptq("gptq").decode("a", gptq("gptq").tensors("a", weight), scheme), weight)


@pytest.mark.parametrize(("out", "width"), [(33, 64), (64, 40)])
def test_gptq_refuses_layers_that_do_not_fill_words(out: int, width: int) -> None:
    scheme = Scheme.parse("w4-row")
    with pytest.raises(ModelError, match=f"a has {out} output and {width} input features"):
        gptq().tensors("a", quantized(scheme, out, width))


def problems(scheme: str, shape: tuple[int, int] = (64, 64)) -> list[str]:
    model = ModelShape("m", "qwen3", {"a": shape}, 64, 8, 1, True, None)
    context = Context(schemes={"a": Scheme.parse(scheme)}, model=model)
    return [problem.text for problem in gptq().options.check(context)]


def test_gptq_refuses_groups_its_readers_do_not_know_before_any_work() -> None:
    assert "not 48" in problems("w4g48")[0]
    assert not any(problems(spelling) for spelling in SCHEMES)


@pytest.mark.parametrize("shape", [(24, 64), (64, 80)])
def test_gptq_tells_layers_that_do_not_fill_words_before_any_work(shape: tuple[int, int]) -> None:
    assert f"a has {shape[0]} output and {shape[1]} input features" in problems("w4-row", shape)[0]


def test_gptq_holds_one_scheme() -> None:
    schemes = {"a": Scheme.parse("w4g32"), "b": Scheme.parse("w2g32")}
    (problem,) = gptq().options.check(Context(schemes=schemes))
    assert "one scheme for all layers, not w4g32, w2g32" in problem.text
    with pytest.raises(ModelError, match="one scheme for all layers"):
        gptq().config(schemes, ["lm_head"])


def test_compressed_tensors_groups_layers_by_scheme() -> None:
    """Several schemes are one group each, which its library reads back for the right layers."""
    schemes = {"m.a": Scheme.parse("w4g32"), "m.b": Scheme.parse("w2-row-sym"), "m.c": Scheme.parse("w4g32")}
    config = compressed_tensors().config(schemes, ["lm_head"])
    assert [group["targets"] for group in config["config_groups"].values()] == [["m.a", "m.c"], ["m.b"]]
    quantization = pytest.importorskip("compressed_tensors.quantization")
    model = torch.nn.Module()
    model.m, model.lm_head = torch.nn.Module(), torch.nn.Linear(32, 32)
    for name in "abc":
        model.m.add_module(name, torch.nn.Linear(32, 32))
    quantization.apply_quantization_config(model, quantization.QuantizationConfig.model_validate(config))
    found = {name: getattr(model.get_submodule(name), "quantization_scheme", None) for name in (*schemes, "lm_head")}
    assert {name: scheme and (scheme.weights.num_bits, scheme.weights.symmetric) for name, scheme in found.items()} == {
        "m.a": (4, False),
        "m.b": (2, True),
        "m.c": (4, False),
        "lm_head": None,
    }


def test_gptq_names_skipped_layers_for_every_reader() -> None:
    config = gptq().config(
        dict.fromkeys(["model.a.0", "model.b.0"], Scheme.parse("w4g32-sym")), ["model.c.0", "lm_head"]
    )
    assert config["dynamic"] == {r"-:^model\.c\.0$": {}}
    assert config["modules_in_block_to_quantize"] == [["model.a.0", "model.b.0"]]
    assert "dynamic" not in gptq().config({"model.a.0": Scheme.parse("w4g32-sym")}, ["lm_head"])


@pytest.mark.parametrize("spelling", SCHEMES)
def test_transformers_accepts_the_gptq_config(spelling: str) -> None:
    from transformers import GPTQConfig

    scheme = Scheme.parse(spelling)
    config = GPTQConfig.from_dict(gptq().config({"a": scheme}, ["lm_head"]))
    assert (config.bits, config.group_size, config.sym) == (scheme.bits, scheme.group, scheme.symmetric)
