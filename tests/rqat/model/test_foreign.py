"""Quantized checkpoints of other tools: rqat starts from what they hold, packed here by each format's definition."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rqat
from rqat import ModelError, NumericsError, Scheme
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.checkpoint import load_checkpoint
from rqat.model.config import read_config
from rqat.model.foreign_layers import load_foreign
from rqat.model.load import load_model
from rqat.model.stored_schemes import stored_schemes
from rqat.pipeline import run_pipeline
from rqat.plan import build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat_kernels.packing import unpack
from tests.servers.files import byte_tokenizer, export, prompts, save_rounded, small_model

TINY = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 288}


def words(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row as one number whose lowest bits are its first value, cut into words of 32 bits."""
    count = -(-rows.shape[1] * bits // 32)
    found = []
    for row in rows.tolist():
        number = sum(value << (bits * index) for index, value in enumerate(row))
        found.append([(number >> (32 * word)) & 0xFFFFFFFF for word in range(count)])
    return torch.tensor(found, dtype=torch.int64).to(torch.int32)


def awq_words(rows: torch.Tensor) -> torch.Tensor:
    """Eight values to a word; the nibbles, from the lowest, hold values 0, 2, 4, 6, 1, 3, 5, 7."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    return words(rows.view(len(rows), -1, 8)[..., order].reshape(len(rows), -1), 4)


def gptq_layer(codes, zero, scale, bits, group, version):
    order = torch.arange(codes.shape[1], dtype=torch.int32) // group
    stored = zero - 1 if version == 1 else zero
    tensors = {"qweight": words(codes, bits).T, "qzeros": words(stored.T, bits), "scales": scale.T, "g_idx": order}
    return tensors | {"bias": torch.zeros(len(codes), dtype=torch.float16)}  # as AutoGPTQ writes where there is none


def awq_layer(codes, zero, scale, bits, group):
    return {"qweight": awq_words(codes.T), "qzeros": awq_words(zero.T), "scales": scale.T}


def compressed_layer(codes, zero, scale, bits, group, symmetric):
    tensors = {"weight_packed": words(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor(codes.shape)}
    return tensors | ({} if symmetric else {"weight_zero_point": words(zero.T, bits).T})


def mlx_layer(codes, zero, scale, bits, group):
    """Every second group has a negative scale and its codes from the top, as in MLX where the highest is larger."""
    top, turned = 2**bits - 1, torch.arange(scale.numel()).view(scale.shape) % 2 == 0
    spread = turned.repeat_interleave(group, 1)
    return {
        "weight": words(torch.where(spread, top - codes, codes), bits).view(torch.uint32),
        "scales": torch.where(turned, -scale, scale),
        "biases": torch.where(turned, (top - zero) * scale, -zero * scale),
    }


def config_groups(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    row = scheme.group == -1
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "actorder": None}
    weights |= {"strategy": "channel" if row else "group", "group_size": None if row else scheme.group}
    return {"targets": targets, "weights": weights, "input_activations": None}


CASES = {
    "gptq-v1-sym": ("w4g32-sym", {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}),
    "gptq-v1": ("w3g32", {"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": False}),
    "gptq-v2": ("w2-row", {"quant_method": "gptq", "bits": 2, "group_size": -1, "sym": False, "desc_act": True}),
    "gptq-v2-8": ("w8g32", {"quant_method": "gptq", "bits": 8, "group_size": 32, "sym": False}),
    "awq": ("w4g32", {"quant_method": "awq", "version": "GEMM", "bits": 4, "group_size": 32, "zero_point": True}),
    "mlx": ("w4g32", {"group_size": 32, "bits": 4, "mode": "affine"}),
    "mlx-3": ("w3g32", {"group_size": 32, "bits": 3}),
    "mlx-8": ("w8g32", {"group_size": 32, "bits": 8}),
    "ct": ("w4g32", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "ct-sym": ("w8-row-sym", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
    "ct-3": ("w3-row", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
}


def random_codes(weight: torch.Tensor, scheme: Scheme, low: int, generator: torch.Generator):
    """Codes, zero points and scales that have nothing to do with the weight but its shape."""
    out, width = weight.shape
    codes = torch.randint(0, scheme.levels, (out, width), generator=generator)
    zero = torch.randint(low, scheme.levels, (out, scheme.groups(width)), generator=generator)
    zero = torch.full_like(zero, scheme.middle) if scheme.symmetric else zero
    return codes, zero, ((torch.rand(zero.shape, generator=generator) + 0.1) / scheme.levels).half()


def rounded_codes(weight: torch.Tensor, scheme: Scheme, low: int, generator: torch.Generator):
    """Codes, zero points and scales of float16 by smallest and largest value, as most tools find them."""
    grouped = weight.detach().float().view(len(weight), scheme.groups(weight.shape[1]), -1)
    least, most = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scale = ((most - least) / scheme.max_code).half()
    if scheme.symmetric:
        scale = (torch.maximum(-least, most) / scheme.middle).half()
    zero = (-least / scale.float()).round().clamp(low, scheme.max_code).long()
    zero = torch.full_like(zero, scheme.middle) if scheme.symmetric else zero
    codes = ((grouped / scale.float()[..., None]).round() + zero[..., None]).clamp(0, scheme.max_code)
    return codes.view(weight.shape).long(), zero, scale


def write_foreign(
    folder: Path, case: str, *, family: str = "qwen3", head: bool = False, model=None, codes_of=random_codes,
    **settings: Any,
):  # fmt: skip
    """A checkpoint as another tool writes it, in float16, and the float32 model it stands for.

    Args:
        model: what is quantized, in place; None is a random one.
        codes_of: finds codes, zero points and scales.
    """
    spelling, quantization = CASES[case]
    scheme, generator = Scheme.parse(spelling), torch.Generator().manual_seed(1)
    model = model or small_model(family, tied=not head, **TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if not head:
        del tensors["lm_head.weight"]
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or (name == "lm_head" and not head):
            continue
        group = scheme.group_size(module.in_features)
        codes, zero, scale = codes_of(module.weight, scheme, 1 if "v1" in case else 0, generator)
        if case.startswith("gptq"):
            made = gptq_layer(codes, zero, scale, scheme.bits, group, 1 if "v1" in case else 2)
        elif case.startswith("mlx"):
            made = mlx_layer(codes, zero, scale, scheme.bits, group)
        elif case == "awq":
            made = awq_layer(codes, zero, scale, scheme.bits, group)
        else:
            made = compressed_layer(codes, zero, scale, scheme.bits, group, scheme.symmetric)
        had_bias = module.bias is not None
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{key}": value for key, value in made.items() if not (key == "bias" and had_bias)}
        spread = (codes - zero.repeat_interleave(group, 1)).float() * scale.float().repeat_interleave(group, 1)
        module.weight.data.copy_(spread)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if case.startswith("gptq-v2"):
        quantization = quantization | {"checkpoint_format": "gptq_v2"}
    if case.startswith("ct"):
        quantization = quantization | {
            "config_groups": {"group_0": config_groups(scheme, ["Linear"])},
            "quantization_status": "compressed",
            "ignore": [] if head else ["lm_head"],
        }
    config = json.loads(model.config.to_json_string()) | {
        "quantization_config": quantization | settings,
        "architectures": [type(model).__name__],
        "torch_dtype": "float16",
    }
    if case.startswith("mlx"):  # which names its settings twice, and no method
        config["quantization"] = config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in prompts()])


@pytest.mark.parametrize("case", CASES)
def test_what_is_taken_over_is_what_the_checkpoint_holds(tmp_path: Path, case: str) -> None:
    """To the bit: scales of float16 stay as they are."""
    expected = write_foreign(tmp_path / "theirs", case)
    assert set(map(str, stored_schemes(tmp_path / "theirs").values())) == {CASES[case][0]}
    found = load_foreign(tmp_path / "theirs")
    assert len(found.layers) == 14
    assert torch.equal(logits(found.model), logits(expected))


@pytest.mark.parametrize(("case", "family"), [("gptq-v1-sym", "qwen2"), ("ct", "llama")])
def test_biases_and_a_quantized_head(tmp_path: Path, case: str, family: str) -> None:
    expected = write_foreign(tmp_path / "theirs", case, family=family, head=True)
    found = load_foreign(tmp_path / "theirs")
    assert list(found.layers)[-1] == "lm_head"
    assert torch.equal(logits(found.model), logits(expected))


def test_transformers_reads_the_same(tmp_path: Path) -> None:
    import transformers

    write_foreign(tmp_path / "theirs", "ct")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    assert torch.equal(logits(load_foreign(tmp_path / "theirs").model), logits(theirs))


@pytest.mark.parametrize("case", ["gptq-v1", "awq", "ct", "mlx"])
def test_a_recipe_begins_with_one_and_exports_it_again(tmp_path: Path, case: str) -> None:
    expected = write_foreign(tmp_path / "theirs", case)
    expected.half().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    settings = tmp_path / "theirs" / "generation_config.json"
    settings.write_text('{"eos_token_id": 1, "temperature": 0.9, "of_another_version": [1]}')
    keys = {"name": "r", "model": str(tmp_path / "model"), "start": str(tmp_path / "theirs"), "export": "rqat"}
    registry = Registry.discover()
    plan = build_plan(built_recipe(keys, {}), registry)
    assert [str(found) for found in preflight(plan) if found.level == "error"] == []
    run_pipeline(Job(plan, tmp_path / "run", registry))
    found = load_checkpoint(tmp_path / "run" / "01-start")
    original = load_foreign(tmp_path / "theirs")
    assert all(layer.equals(original.layers[name]) for name, layer in found.layers.items())
    assert torch.equal(logits(found.model), logits(original.model))
    assert "quantization" not in json.loads((tmp_path / "run" / "01-start" / "config.json").read_text())
    for folder in ("01-start", "02-export/model"):
        assert (tmp_path / "run" / folder / settings.name).read_text() == settings.read_text()


@pytest.mark.parametrize(
    "case", ["gptq-v1", *(pytest.param(case, marks=pytest.mark.long) for case in ("gptq-v2-8", "awq", "ct", "mlx"))]
)
def test_a_run_of_kd_begins_with_the_accuracy_that_was_imported(tmp_path: Path, case: str) -> None:
    """Answer by answer: the start's, and those of the weights that the file stands for, decoded here."""
    model, tokenizer = load_model(ModelKeys(path="builtin:tiny-reasoner"))
    expected = write_foreign(tmp_path / "theirs", case, model=model, codes_of=rounded_codes)
    tokenizer.save_pretrained(tmp_path / "theirs")
    train = {"objective": "kd", "data": "arith", "steps": 1, "batch": 2, "max_tokens": 128}
    keys = {"name": "r", "model": "builtin:tiny-reasoner", "start": str(tmp_path / "theirs"), "train": [train]}
    plan = build_plan(built_recipe(keys | {"export": None}, {}), Registry.current())
    assert [str(found) for found in preflight(plan) if found.level == "error"] == []
    run_pipeline(Job(plan, tmp_path / "run", Registry.current()))
    settings: dict[str, Any] = {"limit": 4, "steps": [1, 2], "max_new_tokens": 64}
    start = rqat.evaluate(tmp_path / "run" / "01-start", "arith", **settings)
    imported = rqat.evaluate(expected, "arith", tokenizer=tokenizer, **settings)
    assert [one["completion"] for one in start.samples] == [one["completion"] for one in imported.samples]
    assert start.results["accuracy"] == imported.results["accuracy"] > 0
    scales = {name: layer.scale for name, layer in load_checkpoint(tmp_path / "run" / "01-start").layers.items()}
    assert any(not torch.equal(scale.bfloat16().float(), scale) for scale in scales.values()), "float16 is kept"


@pytest.mark.parametrize("case", ["ct", "mlx"])
def test_who_has_nothing_but_the_checkpoint_trains_it(tmp_path: Path, case: str) -> None:
    """It is the model, too: decoded, also where transformers has no loader for it."""
    expected = write_foreign(tmp_path / "theirs", case)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one", "completion": "two"}\n' * 4)
    train = {"objective": "sft", "data": str(tmp_path / "rows.jsonl"), "steps": 1, "batch": 2, "max_tokens": 64}
    theirs = str(tmp_path / "theirs")
    keys = {"name": "r", "model": theirs, "start": theirs, "train": [train], "export": "rqat"}
    plan = build_plan(built_recipe(keys, {}), Registry.current())
    assert [str(found) for found in preflight(plan) if found.level == "error"] == []
    config = read_config(ModelKeys(path=theirs))
    assert config.linears == {
        name: (one.out_features, one.in_features)
        for name, one in expected.named_modules()
        if isinstance(one, torch.nn.Linear) and name != "lm_head"
    }
    run_pipeline(Job(plan, tmp_path / "run", Registry.current()))
    assert (tmp_path / "run" / "03-export" / "model" / "model.safetensors").is_file()
    found, _ = load_model(ModelKeys(path=theirs), quantizable=False)
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize(("ends", "dtype"), [("w8g32", "float16"), ("w3g32", "bfloat16")])
def test_what_our_exporter_wrote_for_mlx_comes_back(tmp_path: Path, ends: str, dtype: str) -> None:
    """Every scheme of it, that of the embedding and that of the head, with biases that were rounded."""
    start = save_rounded(tmp_path / "start", "w4g32", ends=ends, tied=False, **TINY)
    facts = export(start, tmp_path / "theirs", "mlx", dtype=dtype)
    assert str(facts["decoded"]).startswith("weights differ by")
    found, expected = load_foreign(tmp_path / "theirs"), load_checkpoint(start)
    assert list(found.layers) == list(expected.layers)
    assert all(layer.equals(expected.layers[name]) for name, layer in found.layers.items())


def change_tensor(folder: Path, ending: str, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors = {key: tensor for key, tensor in tensors.items() if change or not key.endswith(ending)}
    if change:
        tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "settings", "says"),
    [
        ("gptq-v1", {"desc_act": True}, "another order"),
        ("gptq-v1", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq-v1", {"dynamic": {r"+:.*\.0\..*": {"bits": 8}}}, "settings of their own"),
        ("gptq-v1", {"bits": 5}, "is gptq with bits 5, which is not taken over"),
        ("gptq-v1", {"group_size": 0}, "is gptq with group 0, which is not taken over"),
        ("awq", {"version": "gemv"}, "version gemv"),
        ("mlx", {"mode": "mxfp4"}, "in mode mxfp4"),
        ("mlx", {"bits": 6}, "at 6 bits"),
        ("mlx", {"bits": 2}, "which are not 2 bits in groups of 32"),
        ("ct", {"format": "float-quantized"}, "format 'float-quantized'"),
        ("ct", {"transform_config": {"config_groups": {"a": {"type": "hadamard"}}}}, "a transform_config"),
        ("ct", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "a sparsity_config"),
        ("gptq-v1", {"bits": "3"}, "is gptq with bits '3', which is not taken over"),
        ("ct", {"config_groups": {"a": config_groups(Scheme.parse("w4g32"), ["model.layers.0.mlp.up_proj"])}}, "in no"),
        ("awq", {"group_size": 64}, r"scales is (2, 64), and (1, 64) at w4g64"),
        ("gptq-v1", {"group_size": 48}, "64 input features, which do not split into groups of 48"),
        ("ct", {"config_groups": {"a": config_groups(Scheme.parse("w4-row"), ["Linear"])}}, "which are not w4-row"),
        ("ct-3", {"config_groups": {"a": config_groups(Scheme.parse("w2-row"), ["Linear"])}}, "zero_point is (6, 1)"),
        ("ct-sym", {"config_groups": {"a": config_groups(Scheme.parse("w8-row"), ["Linear"])}}, "no zero points"),
    ],
)
def test_what_is_not_taken_over_says_why_before_any_work(tmp_path: Path, case: str, settings: dict, says: str) -> None:
    write_foreign(tmp_path / "theirs", case, **settings)
    keys = {"name": "r", "model": "builtin:tiny-reasoner", "start": str(tmp_path / "theirs"), "export": None}
    plan = build_plan(built_recipe(keys, {}), Registry.discover())
    (line,) = [str(found) for found in preflight(plan) if found.level == "error"]
    assert says in line
    assert "begin with the model it was made from" in line


def described(**weights: Any) -> dict[str, Any]:
    group = config_groups(Scheme.parse("w4g32"), ["Linear"])
    return {"config_groups": {"a": group | {"weights": group["weights"] | weights}}}


ONE_AT_5 = {"config_groups": {**described()["config_groups"], "b": described(num_bits=5)["config_groups"]["a"]}}
ONE_AT_5["config_groups"]["b"]["targets"] = ["re:.*q_proj"]


@pytest.mark.parametrize(
    ("case", "settings", "says"),
    [
        (
            "ct",
            described(num_bits=5),
            "q_proj has 64 x 45 to 51 codes and scales of shape (64, 2), which are not w5g32",
        ),
        ("ct", ONE_AT_5, "q_proj has 64 x 45 to 51 codes"),
        ("ct", described(num_bits="four"), "config_groups.a.weights.num_bits 'four': Input should be a valid integer"),
        ("ct", described(strategy="grup"), "config_groups.a.weights.strategy 'grup': 'grup' is not a valid"),
        ("ct", described(strategy="tensor", group_size=None), "must match the size"),
        ("ct", described(type="float"), "cannot be loaded: AssertionError"),
        ("gptq-v1", {"bits": 5}, "is gptq with bits 5, which is not taken over."),
        ("awq", {"version": "gemv"}, "is awq with version gemv"),
    ],
)
def test_a_quantization_config_that_no_reader_takes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, settings: dict, says: str
) -> None:
    write_foreign(tmp_path / "theirs", case, **settings)
    monkeypatch.setattr("rqat.model.extras.find_spec", lambda name: None if name == "gptqmodel" else name)
    with pytest.raises(ModelError) as error:
        load_model(ModelKeys(path=str(tmp_path / "theirs")), quantizable=False)
    assert says in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint


def test_widths_that_rqat_has_not_are_read_by_transformers(tmp_path: Path) -> None:
    expected = write_foreign(tmp_path / "theirs", "ct", **described(num_bits=5))
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("weight_packed")]:
        width = int(tensors[name.replace("packed", "shape")][1])
        tensors[name] = words(unpack(tensors[name], 4, width).long(), 5)
        zeros = name.replace("packed", "zero_point")
        out = len(tensors[name])
        tensors[zeros] = words(unpack(tensors[zeros].T.contiguous(), 4, out).long(), 5).T.contiguous()
    save_file(tensors, path)
    found, _ = load_model(ModelKeys(path=str(tmp_path / "theirs"), dtype="float32"), quantizable=False)
    assert torch.equal(logits(found), logits(expected))


@pytest.mark.parametrize(
    ("case", "ending", "change", "says"),
    [
        ("gptq-v1", "g_idx", lambda order: order.flip(0), "another order"),
        ("gptq-v1", "qzeros", lambda words: torch.full_like(words, -1), "readers of this format disagree"),
        ("gptq-v1-sym", "qzeros", lambda words: words * 0, "has other zero points"),
        ("awq", "scales", lambda scale: -scale, "negative"),
        ("mlx", "biases", lambda bias: bias * 1.3, "no zero points"),
        ("mlx", "biases", lambda bias: bias[:, :1], "in U32, F16 and F16"),
        ("mlx", "up_proj.weight", lambda words: words.view(torch.float32), "in F32, F16 and F16"),
        ("mlx", "up_proj.weight", lambda words: words[:, 0], "not understood"),
        ("mlx", "biases", lambda bias: -bias, "from -"),
        ("mlx", "scales", lambda scale: scale * float("nan"), "no zero points"),
        ("ct", "weight_packed", lambda words: words[:, :-1], "damaged"),
        ("gptq-v1", "qzeros", None, "is damaged: .*qzeros is missing"),
        ("gptq-v1", "up_proj.qweight", None, "up_proj.* is there, and the codes of that layer are not"),
        ("awq", "scales", lambda scale: scale[:1], "scales is .1, 64., and .3, 64. at w4g32"),
        ("ct", "weight_packed", lambda words: words.float(), "weight_packed is F32, and codes are packed into words"),
        ("ct", "weight_scale", lambda scales: scales.to(torch.int64), "weight_scale is I64, which holds no fractions"),
        ("gptq-v1", "qweight", lambda words: words.long(), "qweight is I64"),
        ("gptq-v1", "scales", lambda scales: scales.int(), "scales is I32, which holds no fractions"),
        ("mlx", "biases", None, "without biases"),
    ],
)
def test_what_the_files_alone_tell(tmp_path: Path, case: str, ending: str, change, says: str) -> None:
    write_foreign(tmp_path / "theirs", case)
    change_tensor(tmp_path / "theirs", ending, change)
    with pytest.raises(ModelError, match=says) as refused:
        load_foreign(tmp_path / "theirs")
    assert "Remove" not in str(refused.value.hint), "it is the user's own"


def test_zero_points_that_symmetric_layers_have_beside_them_must_say_the_same(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "ct-sym")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    zeros = {f"{key[:-6]}_zero_point": 0 * tensors[key] for key in tensors if key.endswith("weight_scale")}
    zeros = {key: zero.to(torch.int8) for key, zero in zeros.items()}
    save_file(tensors | zeros, tmp_path / "theirs" / "model.safetensors")
    assert len(load_foreign(tmp_path / "theirs").layers) == 14
    change_tensor(tmp_path / "theirs", "weight_zero_point", lambda zero: zero + 1)
    with pytest.raises(ModelError, match="symmetric"):
        load_foreign(tmp_path / "theirs")


def test_what_is_not_quantized_is_looked_at_as_well(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "mlx")
    change_tensor(tmp_path / "theirs", "model.norm.weight", lambda norm: norm * float("nan"))
    with pytest.raises(NumericsError, match=r"model\.norm\.weight"):
        load_model(ModelKeys(path=str(tmp_path / "theirs")), quantizable=False)
    with pytest.raises(NumericsError, match=r"model\.norm\.weight"):
        load_foreign(tmp_path / "theirs")


def test_a_head_that_is_tied_and_stored_otherwise_is_refused(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "gptq-v1")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(ModelError, match="readers disagree"):
        load_model(ModelKeys(path=str(tmp_path / "theirs")), quantizable=False)
    with pytest.raises(ModelError, match="readers disagree"):
        load_foreign(tmp_path / "theirs")


@pytest.mark.parametrize(("case", "ones"), [("gptq-v2", 0x55555555), ("gptq-v2-8", 0x01010101), ("gptq-v1", None)])
def test_zero_points_of_gptqmodels_version_1_may_be_zero(tmp_path: Path, case: str, ones: int | None) -> None:
    scheme = Scheme.parse(CASES[case][0])

    def low(*given: Any):  # GPTQ's version 1 of other tools begins at 1
        codes, zero, scale = random_codes(*given)
        zero[::3] = 0 if ones else 1
        return codes, zero, scale

    write_foreign(tmp_path / "plain", case, codes_of=low)
    expected = load_foreign(tmp_path / "plain").layers
    shutil.copytree(tmp_path / "plain", tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    for name in [name for name in tensors if name.endswith("qzeros")]:
        if ones:
            tensors[name] = tensors[name] - ones
        else:  # 1 became 0, and 0 becomes 7
            zero = unpack(tensors[name], scheme.bits, tensors[name].shape[1] * 32 // scheme.bits)
            tensors[name] = words((zero.int() - 1) % 8, scheme.bits)
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["quantization_config"] |= {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:7.6.0"]}}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    for name, layer in load_foreign(tmp_path / "theirs").layers.items():
        assert layer.codes.equal(expected[name].codes)
        assert layer.zero.equal(expected[name].zero - (0 if ones else 1))
    assert any(bool((layer.zero == 0).any()) for layer in load_foreign(tmp_path / "theirs").layers.values())


def settings_beside(folder: Path, name: str, renamed: dict[str, str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    given = {renamed.get(key, key): value for key, value in config.pop("quantization_config").items()}
    del given["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps(given))


def plain_zeros(folder: Path) -> None:
    """One byte for each, 0 in the middle: releases of compressed-tensors before 0.9."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_zero_point")]:
        out = int(tensors[name.replace("zero_point", "shape")][0])
        tensors[name] = (unpack(tensors[name], 4, out, dim=0).int() - 8).to(torch.int8)
    save_file(tensors, folder / "model.safetensors")


def cache_scales(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    scales = {f"model.layers.{index}.self_attn.{part}_scale": torch.ones(1) for index in (0, 1) for part in "kv"}
    save_file(tensors | scales, folder / "model.safetensors")


def in_the_group(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = "mixed-precision"
    config["quantization_config"]["config_groups"]["group_0"]["format"] = "pack-quantized"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("case", "change", "settings"),
    [
        ("gptq-v1", lambda f: settings_beside(f, "quantize_config.json", {}), {}),
        ("awq", lambda f: settings_beside(f, "quant_config.json", {"bits": "w_bit", "group_size": "q_group_size"}), {}),
        ("gptq-v1", lambda f: change_tensor(f, "g_idx", None), {}),
        ("gptq-v1", lambda f: None, {"desc_act": True, "static_groups": True}),
        ("ct", in_the_group, {}),
        ("ct", lambda f: None, {"format": None}),
        ("ct", cache_scales, {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}),
        ("ct", plain_zeros, {}),
    ],
    ids=["AutoGPTQ", "AutoAWQ", "no g_idx", "static groups", "by group", "no format", "cache", "plain zeros"],
)
def test_what_other_releases_write_is_read_as_well(tmp_path: Path, case: str, change, settings: dict) -> None:
    expected = write_foreign(tmp_path / "theirs", case, **settings)
    change(tmp_path / "theirs")
    assert set(map(str, stored_schemes(tmp_path / "theirs").values())) == {CASES[case][0]}
    assert read_config(ModelKeys(path=str(tmp_path / "theirs"))).quantization
    assert torch.equal(logits(load_foreign(tmp_path / "theirs").model), logits(expected))


@pytest.mark.parametrize("case", ["awq", "mlx"])
def test_groups_of_zeros_keep_their_value(tmp_path: Path, case: str) -> None:
    write_foreign(tmp_path / "theirs", case)
    for part in ("scales", "biases") if case == "mlx" else ("scales",):
        change_tensor(tmp_path / "theirs", f"k_proj.{part}", lambda tensor: tensor * 0)
    found = load_foreign(tmp_path / "theirs")
    layer = found.layers["model.layers.0.self_attn.k_proj"]
    assert bool((layer.scale > 0).all())
    assert not found.model.model.layers[0].self_attn.k_proj.weight.any()


def test_packed_weights_whose_config_says_nothing_are_called_that(tmp_path: Path) -> None:
    write_foreign(tmp_path / "theirs", "gptq-v1")
    path = tmp_path / "theirs" / "config.json"
    settings = json.loads(path.read_text())
    del settings["quantization_config"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="does not ask for") as refused:
        load_model(ModelKeys(path=str(tmp_path / "theirs")), quantizable=False)
    assert "put its quantization_config back" in refused.value.hint
