"""Layers quantized one shared input after the other: what each one reads, and passes that wait for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat import LinearStats, NumericsError, QuantizedWeight, Quantizer, Scheme
from rqat.model import activations
from rqat.model.activations import TokenBatch
from rqat.model.blocks import quantize_model
from rqat.model.turns import passes
from rqat_gptq import Options
from rqat_gptq.solver import Gptq
from tests.tiny import tiny_model

SCHEME = Scheme.parse("w2g32")


def tokens(batches: int = 3, length: int = 24) -> list[TokenBatch]:
    generator = torch.Generator().manual_seed(1)
    found = [TokenBatch(torch.randint(5, 60, (2, length), generator=generator)) for _ in range(batches)]
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length // 2 :] = False
    return [*found, TokenBatch(found[0].input_ids, mask)]


class Watched(Gptq):
    """Keeps the statistics of every layer."""

    def __init__(self, *, in_turn: bool) -> None:
        super().__init__(Options(true_sequential=in_turn))
        self.seen: dict[str, torch.Tensor] = {}
        self.calls: list[list[str]] = []

    def quantize_block(self, block, stats: dict[str, LinearStats]) -> dict[str, QuantizedWeight]:
        self.calls.append(block.names())
        self.seen |= {block.full_name(name): stats[name].hessian.clone() for name in block.names()}
        return super().quantize_block(block, stats)


def test_every_layer_reads_what_the_quantized_layers_before_it_put_out() -> None:
    model, quantizer = tiny_model(0), Watched(in_turn=True)
    layers, reports = quantize_model(model, tokens(), quantizer, SCHEME)
    assert [report.name for report in reports] == list(layers)
    assert len(quantizer.calls) == 4 * model.config.num_hidden_layers
    # The model is quantized now, and nothing that comes before a layer has changed since that layer was.
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name, kept in sums.items():
        hook = lambda module, given, kept=kept: kept.append(given[0])  # noqa: E731
        model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in tokens():
            model(input_ids=batch.input_ids)
    for name, kept in sums.items():
        rows = [
            x.flatten(0, 1) if batch.attention_mask is None else x[batch.attention_mask]
            for x, batch in zip(kept, tokens(), strict=True)
        ]
        whole = torch.cat(rows)
        torch.testing.assert_close(quantizer.seen[name], whole.T @ whole / len(whole), rtol=1e-4, atol=1e-5)


def test_without_it_the_layers_of_a_block_are_still_the_original_ones() -> None:
    apart, together = Watched(in_turn=True), Watched(in_turn=False)
    for quantizer in (apart, together):
        quantize_model(tiny_model(0), tokens(), quantizer, SCHEME)
    first, behind = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    assert torch.equal(apart.seen[first], together.seen[first])
    assert not torch.allclose(apart.seen[behind], together.seen[behind], rtol=1e-2)
    assert len(together.calls) == tiny_model(0).config.num_hidden_layers


def test_without_room_to_wait_the_same_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waited, _ = quantize_model(tiny_model(0), tokens(), Gptq(Options(true_sequential=True)), SCHEME)
    monkeypatch.setattr(activations, "MOST_THREADS", 0)
    again, _ = quantize_model(tiny_model(0), tokens(), Gptq(Options(true_sequential=True)), SCHEME)
    assert list(waited) == list(again)
    assert all(waited[name].equals(again[name]) for name in waited)


def test_an_interrupted_walk_ends_with_the_same_bytes(tmp_path: Path) -> None:
    class Interrupted(Watched):
        def quantize_block(self, block, stats):
            if len(self.calls) == 6:
                raise KeyboardInterrupt
            return super().quantize_block(block, stats)

    whole, _ = quantize_model(tiny_model(0), tokens(), Watched(in_turn=True), SCHEME)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_model(0), tokens(), Interrupted(in_turn=True), SCHEME, resume_dir=tmp_path)
    again = Watched(in_turn=True)
    resumed, _ = quantize_model(tiny_model(0), tokens(), again, SCHEME, resume_dir=tmp_path)
    assert len(again.calls) == 4 * (tiny_model(0).config.num_hidden_layers - 1)
    assert all(whole[name].equals(resumed[name]) for name in whole)


def test_what_a_pass_raises_is_raised_and_every_pass_ends() -> None:
    layer = torch.nn.Linear(4, 4)
    ended = []

    def work(number: int):
        def run() -> torch.Tensor:
            try:
                out = layer(torch.ones(1, 4))
                if number == 1:
                    raise NumericsError("a pass failed")
                return layer(out)
            finally:
                ended.append(number)

        return run

    with passes([work(number) for number in range(3)], [layer]) as begun:
        assert [one.go_on() for one in begun[:2]] == [0, 0]
        with pytest.raises(NumericsError, match="a pass failed"):
            begun[1].go_on()
    assert sorted(ended) == [0, 1]  # the third had not begun
    assert not any(one.is_alive() for one in begun)
    assert not layer._forward_pre_hooks


def test_passes_take_turns() -> None:
    layer, trace = torch.nn.Linear(2, 2), []

    def work(number: int):
        def run() -> torch.Tensor:
            trace.append(number)
            out = layer(torch.full((1, 2), float(number)))
            trace.append(number)
            return out

        return run

    with passes([work(0), work(1)], [layer]) as begun:
        for one in begun:
            assert one.go_on() == 0
        assert [one.input.tolist() for one in begun] == [[[0.0, 0.0]], [[1.0, 1.0]]]
        assert trace == [0, 1]
        for one in begun:
            assert one.go_on() is None
        assert all(one.output.shape == (1, 2) for one in begun)
    assert trace == [0, 1, 0, 1]


class Streaming(Gptq):
    """Needs what a block by itself cannot give in turn."""

    needs = Quantizer.needs | {"hessian", "streams"}


def test_a_quantizer_of_whole_blocks_gets_whole_blocks() -> None:
    quantizer = Streaming(Options(true_sequential=True))
    calls = []
    plain = quantizer.quantize_block
    quantizer.quantize_block = lambda block, stats: calls.append(block.names()) or plain(block, stats)
    model = tiny_model(0)
    quantize_model(model, tokens(), quantizer, SCHEME)
    assert len(calls) == model.config.num_hidden_layers
