"""The model's two ends, embedding and head: named by patterns, quantized, saved and loaded, tied or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat import ModelError, Scheme, Schemes, grid_of
from rqat.model.activations import TokenBatch
from rqat.model.blocks import quantize_model
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.model.layers import choose_layers
from rqat_awq import Options as AwqOptions
from rqat_awq.solver import Awq
from rqat_gptq import Options as GptqOptions
from rqat_gptq.solver import Gptq
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest
from tests.tiny import tiny_model, tiny_tokenizer

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
SHAPE = (128, 64)
TIED, UNTIED = {EMBEDDING: SHAPE}, {EMBEDDING: SHAPE, HEAD: SHAPE}
LINEARS = {f"model.layers.{block}.{name}": (64, 96) for block in (0, 1) for name in ("mlp.up_proj", "mlp.down_proj")}
BOTH = {"default": "w2g32", "lm_head": "w4g64", "embed_tokens": "w8g64"}
QUANTIZERS = {"rtn": RoundToNearest(RtnOptions()), "gptq": Gptq(GptqOptions()), "awq": Awq(AwqOptions(grid=3))}


def tokens() -> list[TokenBatch]:
    return [TokenBatch(torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(1)))]


def ends_of(schemes: dict[str, str], *, ends: dict[str, tuple[int, int]], skip: tuple[str, ...] = ()) -> dict[str, str]:
    """What becomes of the two ends; the layers between are there in any case."""
    chosen = choose_layers(LINEARS, Schemes.parse({"default": "w2g32", **schemes}), ends=ends, skip=skip)
    assert [name for name in chosen if name in LINEARS] == list(LINEARS)
    return {name: str(scheme) for name, scheme in chosen.items() if name not in LINEARS}


# -------------------------------------------------------------------------------------------------------- choosing


def test_ends_are_quantized_only_where_a_pattern_names_them() -> None:
    assert ends_of({}, ends=UNTIED) == ends_of({"*": "w4g32"}, ends=UNTIED) == {}
    for pattern in ("lm_head", "lm_*"):
        assert ends_of({pattern: "w4g32"}, ends=UNTIED) == {HEAD: "w4g32"}
    for pattern in ("embed_tokens", EMBEDDING, "*embed*"):
        assert ends_of({pattern: "w4g32"}, ends=UNTIED) == {EMBEDDING: "w4g32"}
    assert ends_of({"lm_head": "w4g32", "embed_tokens": "w8g32"}, ends=UNTIED) == {EMBEDDING: "w8g32", HEAD: "w4g32"}


def test_the_longest_pattern_decides_as_for_every_layer() -> None:
    assert ends_of({"*_tokens": "w8g32", "embed_tokens": "w4g32"}, ends=UNTIED) == {EMBEDDING: "w4g32"}
    assert ends_of({EMBEDDING: "w4g32", "embed_tokens": "w8g32"}, ends=UNTIED) == {EMBEDDING: "w4g32"}


def test_the_embedding_comes_first_and_the_head_last() -> None:
    names = list(choose_layers(LINEARS, Schemes.parse(BOTH), ends=UNTIED))
    assert (names[0], names[-1], names[1:-1]) == (EMBEDDING, HEAD, list(LINEARS))


def test_either_name_of_a_tied_pair_means_the_pair() -> None:
    for pattern in ("lm_head", "embed_tokens", EMBEDDING):
        assert ends_of({pattern: "w4g32"}, ends=TIED) == {EMBEDDING: "w4g32"}
    assert ends_of({"lm_head": "w4g32", "embed_tokens": "w4g32"}, ends=TIED) == {EMBEDDING: "w4g32"}
    for skipped in ("lm_head", "embed_tokens"):
        assert ends_of({"lm_head": "w4g32"}, ends=TIED, skip=(skipped,)) == {}


def test_two_schemes_for_a_tied_pair_are_one_clear_error() -> None:
    with pytest.raises(ModelError, match=r"^scheme: w8g64 for model.embed_tokens and w4g64 for lm_head, but .* tied"):
        choose_layers(LINEARS, Schemes.parse(BOTH), ends=TIED)
    with pytest.raises(ModelError, match=r"tied to its embedding: the two are one weight. Give both the same scheme"):
        quantize_model(tiny_model(), [], QUANTIZERS["rtn"], Schemes.parse(BOTH))


def test_an_end_is_divided_by_its_own_group() -> None:
    with pytest.raises(ModelError, match=r"1 layers .* groups of 96 do not divide: model.embed_tokens \(128, 64\)"):
        ends_of({"lm_head": "w4g96"}, ends=TIED)


# -------------------------------------------------------------------------------------------------------- quantizing


def schemes_for(*, tied: bool) -> Schemes:
    return Schemes.parse({"default": "w2g32", "lm_head": "w4g64"} if tied else BOTH)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_does_both_ends_and_they_are_saved_and_loaded(tmp_path: Path, name: str, tied: bool) -> None:
    model, schemes = tiny_model(tied=tied), schemes_for(tied=tied)
    layers, reports = quantize_model(model, tokens(), QUANTIZERS[name], schemes)
    wanted = {EMBEDDING: "w4g64"} if tied else {EMBEDDING: "w8g64", HEAD: "w4g64"}
    assert {end: str(layers[end].scheme) for end in (EMBEDDING, HEAD) if end in layers} == wanted
    assert [report.name for report in reports] == list(layers)
    assert all(report.error is not None and 0 < report.error < 0.05 for report in reports if report.name in wanted)
    for end in wanted:
        found = grid_of(Scheme.parse(wanted[end])).decode_layer(layers[end])
        assert torch.equal(model.get_parameter(f"{end}.weight"), found)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied

    save_checkpoint(tmp_path, model, tiny_tokenizer(), layers)
    loaded = load_checkpoint(tmp_path)
    assert all(layer.equals(layers[each]) for each, layer in loaded.layers.items())
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) is tied
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens()[0].input_ids).logits, model(tokens()[0].input_ids).logits)
    assert loaded.model.config.dtype == torch.float32  # as loaded; on disk it is that of the norms
    assert '"dtype": "bfloat16"' in (tmp_path / "config.json").read_text()


def test_blocks_are_calibrated_on_what_the_quantized_embedding_puts_out() -> None:
    """With an embedding that is on its grid before, nothing else changes."""
    schemes = Schemes.parse({"default": "w2g32", "embed_tokens": "w4g64"})
    first, _ = quantize_model(model := tiny_model(tied=False), tokens(), QUANTIZERS["gptq"], schemes)
    again = tiny_model(tied=False)
    with torch.no_grad():
        again.model.embed_tokens.weight.copy_(grid_of(Scheme.parse("w4g64")).decode_layer(first[EMBEDDING]))
    second, _ = quantize_model(again, tokens(), QUANTIZERS["gptq"], Scheme.parse("w2g32"))
    assert all(layer.equals(first[name]) for name, layer in second.items())
    assert not torch.equal(model.model.embed_tokens.weight, tiny_model(tied=False).model.embed_tokens.weight)


def head_error(quantizer: str) -> float:
    """How far the logits of the unquantized hidden states move, when the tied pair is quantized."""
    before, after = tiny_model(), tiny_model()
    layers, _ = quantize_model(
        after, tokens(), QUANTIZERS[quantizer], Schemes.parse({"default": "w8g32", HEAD: "w3g64"})
    )
    hidden = before.model(tokens()[0].input_ids).last_hidden_state
    with torch.no_grad():
        moved = hidden @ (grid_of(Scheme.parse("w3g64")).decode_layer(layers[EMBEDDING]) - before.lm_head.weight).T
    return float(moved.square().mean())


def test_gptq_does_a_tied_pair_by_what_the_head_reads() -> None:
    assert head_error("gptq") < 0.8 * head_error("rtn")
    assert head_error("awq") == head_error("rtn")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_an_interrupted_walk_ends_in_the_same_layers(tmp_path: Path, tied: bool) -> None:
    schemes = schemes_for(tied=tied)
    found, _ = quantize_model(tiny_model(tied=tied), tokens(), QUANTIZERS["gptq"], schemes, resume_dir=tmp_path)
    expected = dict(found)  # read before the second walk writes the same file
    assert (tmp_path / "model.safetensors").exists()  # the embedding
    (tmp_path / "model.layers.1.safetensors").unlink()
    again = tiny_model(tied=tied)
    layers, _ = quantize_model(again, tokens(), QUANTIZERS["gptq"], schemes, resume_dir=tmp_path)
    assert list(layers) == list(expected)
    assert all(layer.equals(expected[name]) for name, layer in layers.items())
