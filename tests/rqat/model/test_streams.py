"""What quantizers see beyond second moments: means, maxima, the original model's inputs, and whole blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rqat import Block, LinearStats, QuantizedWeight, Quantizer, Scheme, Statistic, grid_of
from rqat.model.activations import TokenBatch
from rqat.model.blocks import quantize_model
from tests.tiny import tiny_model

SCHEME = Scheme.parse("w3g32")
LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def batches() -> list[TokenBatch]:
    """Two of full sequences, and one whose last tokens are padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 96, (4, 24), generator=generator) for _ in range(3)]
    mask = torch.ones(4, 24, dtype=torch.bool)
    mask[1, 15:] = mask[3, 3:] = False
    return [TokenBatch(ids[0]), TokenBatch(ids[1]), TokenBatch(ids[2], mask)]


class Watching(Quantizer):
    """Rounds to nearest and remembers the statistics of every layer."""

    def __init__(self, *needs: Statistic) -> None:
        super().__init__(None)
        self.needs = frozenset(needs)  # type: ignore[misc]
        self.seen: dict[str, LinearStats] = {}

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
        grid = grid_of(scheme)
        return grid.quantize_layer(weight, *grid.fit_layer(weight))

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        self.seen |= {block.full_name(name): one for name, one in stats.items()}
        return super().quantize_block(block, stats)


@torch.no_grad()
def inputs_of(model: torch.nn.Module, layer: str) -> Tensor:
    """The inputs of a layer `(N, I)` at all tokens that are no padding."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for batch in batches():
        model(batch.input_ids, use_cache=False)
        rows = seen.pop().flatten(0, 1)
        seen.insert(0, rows if batch.attention_mask is None else rows[batch.attention_mask.flatten()])
    hook.remove()
    return torch.cat(seen[::-1])


def so_far(original: torch.nn.Module, quantized: torch.nn.Module, blocks: int) -> torch.nn.Module:
    """The model with its first blocks quantized and the others original."""
    mixed = copy.deepcopy(original)
    for index in range(blocks):
        mixed.model.layers[index].load_state_dict(quantized.model.layers[index].state_dict())
    return mixed


def test_means_maxima_and_differences_from_the_original_model() -> None:
    model, quantizer = tiny_model(layers=3), Watching("mean", "absmax", "cross", "hessian")
    original = copy.deepcopy(model)
    quantize_model(model, batches(), quantizer, SCHEME)
    for block in range(3):
        for name in (f"model.layers.{block}.{name}" for name in LAYERS):
            x, y = inputs_of(so_far(original, model, block), name), inputs_of(original, name)
            stats = quantizer.seen[name]
            assert stats.tokens == len(x) == 2 * 4 * 24 + 24 + 15 + 24 + 3
            torch.testing.assert_close(stats.mean, x.mean(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(stats.absmax, x.abs().amax(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(stats.cross, x.T @ (y - x) / len(x), rtol=1e-3, atol=1e-6)
            assert bool(stats.cross.any()) is (block > 0)  # before the first block nothing is quantized
            assert stats.absmean is None


def test_nothing_is_collected_that_was_not_asked_for() -> None:
    quantizer = Watching("absmax")
    quantize_model(tiny_model(), batches(), quantizer, SCHEME)
    one = quantizer.seen["model.layers.1.mlp.down_proj"]
    assert one.absmax is not None
    assert (one.hessian, one.absmean, one.mean, one.cross) == (None, None, None, None)


class Tuned(Watching):
    """Rounds, then trains the norm before q, k and v so that the block puts out what the original one did."""

    def __init__(self, *, steps: int) -> None:
        super().__init__("streams")
        self.steps = steps
        self.errors: list[float] = []
        self.original: list[Tensor] = []

    def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
        assert block.streams is not None
        self.original.append(block.streams.original_outputs[2].clone())
        made = super().quantize_block(block, stats)
        for name, layer in made.items():
            block.linear(name).weight.copy_(grid_of(block.schemes[name]).decode_layer(layer))
        norm = block.module.get_submodule("post_attention_layernorm").weight
        with torch.enable_grad():
            optimizer = torch.optim.Adam([norm], lr=3e-3)
            for _ in range(self.steps):
                optimizer.zero_grad()
                self.error(block).backward()
                optimizer.step()
        self.errors.append(float(self.error(block)))
        return made

    def error(self, block: Block) -> Tensor:
        streams = block.streams
        assert streams is not None
        total = torch.zeros(())
        for number, (hidden, wanted, mask) in enumerate(
            zip(streams.inputs, streams.original_outputs, streams.masks, strict=True)
        ):
            missed = (streams.run(number, hidden) - wanted).square().sum(-1)
            total = total + (missed if mask is None else missed * mask).sum()
        return total


def test_a_block_can_be_tuned_to_put_out_what_the_original_one_did() -> None:
    plain, tuned = Tuned(steps=0), Tuned(steps=15)
    models = []
    for quantizer in (plain, tuned):
        models.append(tiny_model(layers=3))
        quantize_model(models[-1], batches(), quantizer, SCHEME)
    assert all(after < before for before, after in zip(plain.errors, tuned.errors, strict=True))
    assert plain.errors[2] > plain.errors[0]  # the quantized stream moves away from the original one
    original = tiny_model(layers=3)
    with torch.no_grad():
        states = original(batches()[2].input_ids, output_hidden_states=True).hidden_states
    for block in range(2):  # the last hidden state went through the final norm
        torch.testing.assert_close(plain.original[block], states[block + 1], rtol=1e-4, atol=1e-5)


def test_resuming_carries_the_original_stream_past_finished_blocks(tmp_path: Path) -> None:
    whole = Tuned(steps=3)
    model = tiny_model(layers=3)
    expected, _ = quantize_model(model, batches(), whole, SCHEME)

    class Killed(Tuned):
        def quantize_block(self, block: Block, stats: Mapping[str, LinearStats]) -> dict[str, QuantizedWeight]:
            if block.name.endswith("2"):
                raise KeyboardInterrupt
            return super().quantize_block(block, stats)

    with pytest.raises(KeyboardInterrupt):
        quantize_model(tiny_model(layers=3), batches(), Killed(steps=3), SCHEME, resume_dir=tmp_path)
    resumed, again = Tuned(steps=3), tiny_model(layers=3)
    layers, _ = quantize_model(again, batches(), resumed, SCHEME, resume_dir=tmp_path)
    assert len(resumed.errors) == 1
    assert resumed.errors[0] == whole.errors[2]
    assert all(layer.equals(expected[name]) for name, layer in layers.items())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
