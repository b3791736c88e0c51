"""What a width costs: the estimate against the divergence itself, and tries that go on where they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rqat.grids import grid_of
from rqat.model.activations import TokenBatch
from rqat.model.layers import EMBEDDING
from rqat.model.sensitivity import Divergence, measure, second_order
from rqat.model.tries import Tries, try_widths
from rqat.scheme import Schemes
from rqat_gptq import Options
from rqat_gptq.solver import Gptq
from tests.tiny import tiny_model

CHOOSES = {"skip": (), "indivisible": "error"}
SCHEMES = {bits: Schemes.parse({"default": f"w{bits}g32", "embed_tokens": f"w{bits}g32"}) for bits in (3, 4)}
UNITS = [(f"model.layers.{block}.{name}",) for block in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")]


def batches(seed: int) -> list[TokenBatch]:
    ids = torch.randint(5, 120, (24, 32), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(12, 32, dtype=torch.bool)
    mask[3, 20:] = False
    return [TokenBatch(ids[:12]), TokenBatch(ids[12:], mask)]


@pytest.fixture(scope="module")
def model() -> Any:
    """Sharper than at random, so that its predictions depend on what is quantized."""
    made = tiny_model(0).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(8)
        made.get_input_embeddings().weight.mul_(4)
    return made


@pytest.fixture(scope="module")
def tries(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Tries:
    folder = tmp_path_factory.mktemp("tries")
    return try_widths(model, batches(0), Gptq(Options()), SCHEMES, folder, chooses=CHOOSES)


def test_the_estimate_is_near_the_divergence(model: Any, tries: Tries) -> None:
    decoder = [(f"model.layers.{index}", model.get_submodule(f"model.layers.{index}")) for index in (0, 1)]
    held_out = batches(1)
    costs = second_order(model, decoder, UNITS, held_out, tries)
    divergence = Divergence(model, held_out)
    assert divergence() < 1e-5  # what half precision of the kept logits leaves
    for unit in UNITS:
        for bits in (3, 4):
            with tries.put_in(model, dict.fromkeys(unit, bits)):
                measured = divergence()
            # One drawn token for each of 756 places, and the terms between places left out.
            assert costs[unit][bits] == pytest.approx(measured, rel=0.5), (unit, bits)
        assert costs[unit][3] > 2 * costs[unit][4]
    assert divergence() < 1e-5  # the weights are back


def test_the_ends_are_measured_themselves(
    model: Any, tries: Tries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = batches(1)
    widths = {(EMBEDDING,): [3, 4, 16], UNITS[0]: [3, 4]}
    kept = tmp_path / "costs.json"
    found = measure(model, list(widths), held_out, tries, lambda unit: widths[unit], kept)
    with tries.put_in(model, {EMBEDDING: 3}):
        weight = model.get_input_embeddings().weight.clone()
        assert model.lm_head.weight.equal(weight)
    assert found[(EMBEDDING,)][3] > found[(EMBEDDING,)][4] > found[(EMBEDDING,)][16] == 0
    assert not model.get_input_embeddings().weight.equal(weight)

    # Interrupted at the end, it goes on with what it had.
    monkeypatch.setattr("rqat.model.sensitivity.second_order", None)
    monkeypatch.setattr("rqat.model.sensitivity.Divergence", None)
    assert found == measure(model, list(widths), held_out, tries, lambda unit: widths[unit], kept)


def test_an_interrupted_walk_makes_the_same_tries(model: Any, tries: Tries, tmp_path: Path) -> None:
    class Dying(Gptq):
        left = 9

        def quantize_block(self, block: Any, stats: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().quantize_block(block, stats)

    dying = Dying(Options())
    with pytest.raises(KeyboardInterrupt):
        try_widths(model, batches(0), dying, SCHEMES, tmp_path, chooses=CHOOSES)
    there = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert 0 < len(there) < 6
    again = try_widths(model, batches(0), Gptq(Options()), SCHEMES, tmp_path, chooses=CHOOSES)
    for bits in (3, 4):
        for name in again.schemes[bits]:
            assert again.layer(name, bits).equals(tries.layer(name, bits)), (name, bits)


def test_a_quantizer_that_folds_into_other_modules_leaves_the_model_as_it_was(model: Any, tmp_path: Path) -> None:
    class Folding(Gptq):
        def quantize_block(self, block: Any, stats: Any) -> Any:
            made = super().quantize_block(block, stats)
            if block.inputs[0].before:
                block.module.get_submodule(block.inputs[0].before).weight.mul_(0.5)
            return made

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = try_widths(model, batches(0), Folding(Options()), SCHEMES, tmp_path, chooses=CHOOSES)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    name = "model.layers.1.self_attn.q_proj"
    weight = model.get_submodule(name).weight
    grid = grid_of(found.schemes[3][name])
    assert found.layer(name, 3).equals(grid.quantize_layer(weight, *grid.fit_layer(weight)))
