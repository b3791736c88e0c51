"""The exporter `gguf`: what the package gguf decodes from the file are the weights of the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rqat_gguf
from rqat import Context, ModelError, QuantizedWeight, Scheme
from rqat.contracts import ModelShape
from rqat.grids import grid_of
from rqat.model.checkpoint import load_checkpoint
from rqat.registry import Registry
from rqat_gguf import type_of
from rqat_gguf.tokenizer import add_tokenizer
from tests.servers.files import byte_tokenizer, export, save_rounded

gguf = pytest.importorskip("gguf")

SCHEMES = [f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g64", "-row") for sym in ("", "-sym")]


def tensors(folder: Path) -> dict:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def values(tensor) -> torch.Tensor:
    return torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("spelling", SCHEMES)
@pytest.mark.parametrize(("out", "width"), [(5, 64), (33, 192)])
def test_blocks_hold_every_scheme_exactly(spelling: str, out: int, width: int) -> None:
    from rqat_gguf.blocks import blocks

    scheme = Scheme.parse(spelling)
    kind = type_of(scheme, width)
    assert kind == ("" if spelling.startswith("w8") and not scheme.symmetric else kind)
    if not kind:
        return
    grid = grid_of(scheme)
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(out))
    layer = grid.quantize_layer(weight, *grid.fit_layer(weight))
    layer.codes[0, :32] = scheme.max_code  # the ends of the range, too
    layer.codes[1, :32] = 0
    if not scheme.symmetric:
        layer.zero[:2] = torch.tensor([0, scheme.max_code], dtype=torch.uint8)[:, None]
    found = gguf.dequantize(blocks(layer, kind), gguf.GGMLQuantizationType[kind])
    assert torch.equal(torch.tensor(found), grid.decode_layer(layer))


def test_the_types_are_the_narrowest_that_hold_a_scheme() -> None:
    found = {spelling: type_of(Scheme.parse(spelling), 256) for spelling in SCHEMES}
    assert {found[name] for name in ("w2g32", "w3-row", "w3g64-sym", "w4g64-sym")} == {"Q4_0"}
    assert (found["w4g32"], found["w8-row-sym"], found["w8g32"]) == ("Q5_0", "Q8_0", "")
    assert type_of(Scheme.parse("w2g48"), 96) == type_of(Scheme.parse("w2-row"), 80) == ""


def test_what_no_type_holds_is_refused_and_not_cut_off() -> None:
    from rqat_gguf.blocks import blocks

    scheme = Scheme.parse("w4g32")
    layer = grid_of(scheme).quantize_layer(torch.randn(4, 32), torch.ones(4, 1), torch.zeros(4, 1))
    layer.codes[0, 0] = 15
    with pytest.raises(ValueError, match="Q4_0 does not hold its codes"):
        blocks(layer, "Q4_0")
    layer.scale[0, 0] = 1 + 2**-12
    with pytest.raises(ValueError, match="float16 does not hold its scales"):
        blocks(layer, "Q5_0")


LOSS = {
    "w2-row": 0, "w2g256": 0, "w2g128": 0.012, "w2g64-sym": 0.02, "w2g16": 0.055,
    "w3-row-sym": 0, "w3g128-sym": 0.01, "w3g64": 0.03, "w3g16": 0.065,
}  # fmt: skip
"""Most that K types may move random weights, as a share of their norm. llama.cpp's own rounding (ggml_quantize_chunk)
moves weights on the same grids by 0.14 (w2g128), 0.07 (w2g16), 0.10 (w3g64) and 0.07 (w3g16): docs/log.md."""


@pytest.mark.parametrize("spelling", LOSS)
def test_k_types_are_near_the_grid(spelling: str) -> None:
    """As the package gguf decodes them, which has a definition of its own."""
    from rqat_gguf.k_blocks import k_blocks

    scheme, generator = Scheme.parse(spelling), torch.Generator().manual_seed(0)
    kind, grid = type_of(scheme, 512, "k"), grid_of(scheme)
    assert kind == {2: "Q2_K", 3: "Q3_K"}[scheme.bits]
    weight = torch.randn(96, 512, generator=generator) * torch.rand(96, 1, generator=generator) * 0.05
    weight[3] = 0
    layer = grid.quantize_layer(weight, *grid.fit_layer(weight))
    found = torch.tensor(gguf.dequantize(k_blocks(layer, kind), gguf.GGMLQuantizationType[kind]))
    exact = grid.decode_layer(layer)
    assert (found - exact).norm() <= LOSS[spelling] * exact.norm()
    assert not found[3].any()


@pytest.mark.parametrize("zero", range(8))
def test_k_types_reach_every_code(zero: int) -> None:
    """3 bits have no zero points there: codes beyond -4 ... 3 are reached by a wider step, at half of it at worst."""
    from rqat_gguf.k_blocks import k_blocks

    scheme = Scheme.parse("w3g256")
    codes = torch.arange(8, dtype=torch.uint8).repeat(4, 32)
    layer = QuantizedWeight(codes, torch.full((4, 1), 0.5), torch.full((4, 1), zero, dtype=torch.uint8), scheme=scheme)
    found = torch.tensor(gguf.dequantize(k_blocks(layer, "Q3_K"), gguf.GGMLQuantizationType.Q3_K))
    apart = (found - grid_of(scheme).decode_layer(layer)).abs().max() / 0.5
    assert apart <= {3: 0, 4: 0, 2: 1.0, 5: 1.0}.get(zero, 7 / 6)


def test_a_file_of_k_types_says_what_it_costs(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w2g64", ends="w3g64-sym")
    facts = export(start, tmp_path / "out", "gguf", types="k")
    found = tensors(tmp_path / "out")
    assert found["blk.0.ffn_down.weight"].tensor_type.name == "Q2_K"
    assert found["token_embd.weight"].tensor_type.name == "Q3_K"
    told = re.fullmatch(
        r"rounded anew: layers differ by (.*) % at most, weights by (.*) steps of the grid", str(facts["decoded"])
    )
    assert told is not None
    assert 0.5 < float(told[1]) < 4
    assert facts["bytes"] < export(start, tmp_path / "exact", "gguf")["bytes"]
    assert "near the weights that were trained" in (tmp_path / "out" / "README.md").read_text()
    assert export(start, tmp_path / "exact", "gguf")["decoded"] == "every weight equal, bit by bit"


def test_what_k_types_round_and_leave_is_told_before_any_work() -> None:
    shape = ModelShape("m", "llama", {"a": (64, 256), "b": (64, 192)}, 64, 8, 1, True, None)
    options = rqat_gguf.Options(types="k")
    schemes = dict.fromkeys("ab", Scheme.parse("w2g64"))
    rounded, left = options.check(Context(schemes=schemes, model=shape))
    assert rounded.level == left.level == "warning"
    assert "rounds the weights of 1 layers anew" in rounded.text
    assert "leaves 1 layers of 2 and 3 bits as they are, such as b" in left.text


@pytest.mark.parametrize(
    ("family", "tied", "scheme", "ends", "kinds"),
    [
        ("qwen3", True, "w2g64", "w8g32-sym", ("Q4_0", "Q8_0")),
        ("qwen2", False, "w4g32", "w4g64-sym", ("Q5_0", "Q4_0")),
        ("llama", True, "w3-row", "", ("Q4_0", "BF16")),
        ("llama", False, "w8g64", "w4g64", ("F16", "Q5_0")),
    ],
)
def test_the_file_is_the_model(
    tmp_path: Path, family: str, tied: bool, scheme: str, ends: str, kinds: tuple[str, str]
) -> None:
    start = save_rounded(tmp_path / "start", scheme, family, ends=ends, tied=tied)
    facts = export(start, tmp_path / "out", "gguf")
    exact = "F16" not in kinds
    assert facts["decoded"] == "every weight equal, bit by bit" if exact else "steps of the grid" in facts["decoded"]
    found = tensors(tmp_path / "out")
    assert ("output.weight" in found) is not tied
    assert {found["blk.1.ffn_down.weight"].tensor_type.name, found["blk.0.attn_q.weight"].tensor_type.name} == {
        kinds[0]
    }
    assert found["token_embd.weight"].tensor_type.name == kinds[1]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    for name, parameter in load_checkpoint(start).model.named_parameters():
        base, _, ending = name.rpartition(".")
        expected = parameter.detach()
        if family == "llama" and base.endswith(("q_proj", "k_proj")):  # pairs of a head side by side, not in halves
            heads = 4 if base.endswith("q_proj") else 2
            rows = torch.arange(len(expected)).view(heads, 2, 32).transpose(1, 2).reshape(-1)
            expected = expected[rows]
        given = values(found[f"{names.get_name(base)}.{ending}"])
        quantized = ending == "weight" and expected.ndim == 2
        assert torch.equal(given, expected if exact or not quantized else expected.half().float()) or name in (
            "model.embed_tokens.weight",
            "lm_head.weight",
        ), name


def test_tokenizer_and_settings(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w2g64", "llama")
    tokenizer = byte_tokenizer()
    config = json.loads((start / "tokenizer_config.json").read_text())
    (start / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    export(start, tmp_path / "out", "gguf")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == 512
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[-1] == "[PAD511]"
    kinds = fields["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[1], kinds[2], kinds[-1]) == (3, 3, 1, 5)
    assert "th e" in fields["tokenizer.ggml.merges"]
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.padding_token_id"]) == (1, 0)
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["general.file_type"] == 2
    assert fields["llama.attention.key_length"] == fields["llama.rope.dimension_count"] == 64
    assert fields["llama.rope.freq_base"] == 10000.0


def test_of_several_chat_templates_the_default_is_written_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Written:
        def __init__(self) -> None:
            self.templates: list[str] = []

        def __getattr__(self, name: str) -> Any:
            return lambda *given: self.templates.append(given[0]) if name == "add_chat_template" else None

    for templates, expected, left in (
        ({"default": "a", "rag": "b", "tools": "c"}, ["a"], "left out: rag, tools."),
        ("a", ["a"], ""),
        (None, [], ""),
    ):
        tokenizer, writer = byte_tokenizer(), Written()
        tokenizer.chat_template = templates
        caplog.clear()
        add_tokenizer(writer, tokenizer, 512)
        assert writer.templates == expected
        assert caplog.messages == ([f"gguf: the file has one chat template, the default; {left}"] if left else [])


def test_llama3_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    start = save_rounded(tmp_path / "start", "w2g64", "llama", rope_parameters=rope)
    export(start, tmp_path / "out", "gguf")
    factors = torch.tensor(tensors(tmp_path / "out")["rope_freqs.weight"].data)
    plain = 500.0 ** -(torch.arange(0, 64, 2) / 64)
    expected = load_checkpoint(start).model.model.rotary_emb.inv_freq
    assert factors.min() == 1
    assert factors.max() == 8
    torch.testing.assert_close(plain / factors, expected)


def tokenizer_of(pre_tokenizer, model=None) -> dict:
    tokenizer = Tokenizer(model or models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizer
    return json.loads(tokenizer.to_str())


def test_ways_to_cut_texts_up_have_llama_cpps_names() -> None:
    from rqat_gguf.tokenizer import SPLITS, cutting

    bytes_after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert cutting(tokenizer_of(plain)) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert cutting(tokenizer_of(pre_tokenizers.Sequence([digits, plain]))) == "smollm"
    from tokenizers import Regex

    for regex, name in SPLITS.items():
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        assert cutting(tokenizer_of(pre_tokenizers.Sequence([split, bytes_after]))) == name
    for unknown in (
        tokenizer_of(bytes_after),
        tokenizer_of(pre_tokenizers.Metaspace()),
        tokenizer_of(plain, models.WordLevel({"a": 0}, "a")),
        tokenizer_of(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w"), "isolated"), bytes_after])),
    ):
        with pytest.raises(ModelError, match=r"none that is known to be in llama\.cpp"):
            cutting(unknown)


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w2g64")
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(start)
    with pytest.raises(ModelError, match="WordLevel"):
        export(start, tmp_path / "out", "gguf")
    shape = ModelShape("m", "llama", {}, 64, 8, 1, True, None)
    (told,) = rqat_gguf.Options().check(Context(model=shape, tokenizer=lambda: load_checkpoint(start).tokenizer))
    assert "WordLevel" in told.text


def problems(scheme: str, family: str = "llama", **config: object) -> list[str]:
    shape = ModelShape("m", family, {"a": (64, 128)}, 64, 8, 1, True, None, {"model_type": family, **config})
    options = rqat_gguf.Options()
    found = options.check(Context(schemes={"a": Scheme.parse(scheme)}, model=shape))
    return [f"{problem.level}: {problem.text}" for problem in found]


def test_what_it_cannot_write_is_told_before_any_work() -> None:
    assert problems("w2g64") == problems("w4-row") == problems("w3g32", "qwen3", sliding_window=None) == []
    assert "'smollm3' is not written as gguf" in problems("w2g64", "smollm3")[0]
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert "of the kind 'yarn'" in problems("w2g64", rope_parameters=yarn)[0]
    assert problems("w2g64", rope_parameters=yarn) == problems("w2g64", rope_scaling=yarn)
    assert "sliding window" in problems("w2g64", "qwen2", sliding_window=4096, use_sliding_window=True)[0]
    assert problems("w2g64", "qwen2", sliding_window=4096, use_sliding_window=False) == []
    assert "no biases in the attention of qwen3" in problems("w2g64", "qwen3", attention_bias=True)[0]
    assert problems("w2g64", "llama", attention_bias=True, mlp_bias=True, hidden_act="silu") == []
    assert "hidden_act gelu" in problems("w2g64", "llama", hidden_act="gelu")[0]
    assert problems("w8g64") == ["warning: gguf has no type that holds w8g64: 1 layers are written in 16 bits."]
    assert problems("w2g16")[0].startswith("warning")


def test_nothing_is_written_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary copy would fill a small /tmp, or the memory where that is one."""
    start = save_rounded(tmp_path / "start", "w2g64", "llama", ends="w8g32")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no such folder"))
    export(start, tmp_path / "out", "gguf")
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".gguf", ".md"]


def test_a_name_of_a_file(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w2g64")
    export(start, tmp_path / "out", "gguf", name="small")
    assert (tmp_path / "out" / "small.gguf").is_file()
    assert any("no name of a file" in problem.text for problem in rqat_gguf.Options(name="a/b").check(Context()))


def test_it_is_registered_and_packs_the_embedding() -> None:
    assert Registry.discover().card("exporter", "gguf").embedding
