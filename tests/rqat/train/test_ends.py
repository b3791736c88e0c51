"""Training with a quantized embedding and head: kept as they are, or trained on their grid; resumed to equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import rqat
from rqat import Schemes, grid_of
from rqat.model.blocks import quantize_model
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.plan import build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.stages.train import run as train
from rqat.train.optimizer import QuantizedOptimizer
from rqat_rtn import Options as RtnOptions
from rqat_rtn import RoundToNearest
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training import START, digests, train_step, with_callback

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
SCHEMES = Schemes.parse({"default": "w2g32", "lm_head": "w4g64", "embed_tokens": "w4g64"})
TIED = [pytest.param(True, id="tied"), pytest.param(False, id="untied")]


def made(*, tied: bool) -> tuple[Any, dict[str, rqat.QuantizedWeight]]:
    model = tiny_model(tied=tied)
    layers, _ = quantize_model(model, [], RoundToNearest(RtnOptions()), SCHEMES)
    return model, layers


def ends_of(layers: Any) -> list[str]:
    return [name for name in layers if name in (EMBEDDING, HEAD)]


def stepped(model: Any, optimizer: QuantizedOptimizer, seed: int) -> float:
    ids = torch.randint(3, 96, (4, 24), generator=torch.Generator().manual_seed(seed))
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("train_embedding", [False, True])
def test_the_model_in_memory_is_the_model_that_is_served(tied: bool, train_embedding: bool) -> None:
    model, layers = made(tied=tied)
    optimizer = QuantizedOptimizer(
        model, layers, lr=1e-2, scale_lr=1e-2, zero_lr=1e-2, other_lr=1e-3, train_embedding=train_embedding
    )
    losses = [stepped(model, optimizer, 0) for _ in range(4)]
    assert losses[-1] < losses[0]
    after = optimizer.quantized_layers()
    assert list(after) == list(layers)
    for name, layer in after.items():
        assert layer.scheme is not None
        assert torch.equal(model.get_parameter(f"{name}.weight"), grid_of(layer.scheme).decode_layer(layer))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    for end in ends_of(layers):
        assert after[end].equals(layers[end]) is not train_embedding
        assert model.get_parameter(f"{end}.weight").requires_grad is train_embedding
        assert (end in optimizer.latents()) is train_embedding
        assert f"{end}.weight" not in optimizer.masters


def test_a_state_with_trained_ends_does_not_fit_one_without() -> None:
    one, other = (QuantizedOptimizer(*made(tied=True), lr=1e-2, train_embedding=trained) for trained in (True, False))
    with pytest.raises(rqat.RunError, match="does not fit this model"):
        other.load_state_dict(one.state_dict())


# ------------------------------------------------------------------------------------------------- the train stage


def root_of(folder: Path, *, tied: bool) -> Path:
    """A run folder whose start has quantized ends."""
    save_tiny(folder / "model", tied=tied)
    model, layers = made(tied=tied)
    (folder / "run" / START).mkdir(parents=True)
    save_checkpoint(folder / "run" / START, model, tiny_tokenizer(), layers)
    return folder


KEYS: dict[str, Any] = {
    "steps": 5, "batch": 4, "micro_batch": 2, "save_every": 2, "max_tokens": 64,
    "lr": 1e-2, "scale_lr": 1e-3, "zero_lr": 1e-1,
}  # fmt: skip


class Stop(TrainerCallback):
    """Breaks off after three steps, as Ctrl-C would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("train_embedding", [False, True])
def test_a_train_step_resumes_to_equal_bytes(tmp_path: Path, tied: bool, train_embedding: bool) -> None:
    keys = {**KEYS, "train_embedding": train_embedding}
    job, step = train_step(root_of(tmp_path / "whole", tied=tied), "kd", **keys)
    train.run(job, step)
    whole = job.workdir(step)
    before, after = load_checkpoint(tmp_path / "whole" / "run" / START), load_checkpoint(whole)
    for end in ends_of(before.layers):
        assert after.layers[end].equals(before.layers[end]) is not train_embedding

    job, step = train_step(root_of(tmp_path / "broken", tied=tied), "kd", **keys)
    with with_callback(job, step, Stop()), pytest.raises(KeyboardInterrupt):
        train.run(job, step)
    assert (job.scratch(step) / "checkpoint-2").is_dir()
    train.run(job, step)
    assert digests(job.workdir(step)) == digests(whole)


def errors_of(folder: Path, scheme: Any, **keys: Any) -> list[str]:
    step = {"objective": "sft", "data": "arith", "steps": 1, "max_tokens": 64, "train_embedding": True, **keys}
    data = {"name": "ends", "model": str(folder), "scheme": scheme, "quantize": "rtn", "train": [step]}
    plan = build_plan(built_recipe(data, {}), Registry.discover())
    return [found.text for found in preflight(plan) if found.level == "error"]


def test_there_is_nothing_to_train_where_the_ends_are_not_quantized(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (text,) = errors_of(tmp_path, "w2g32")
    assert "train.0.train_embedding: neither the embedding nor the head is quantized" in text
    assert not errors_of(tmp_path, "w2g32", train_embedding=False)
    assert not errors_of(tmp_path, {"default": "w2g32", "lm_head": "w4g32"})


# ------------------------------------------------------------------------------------------------- from Python


@pytest.mark.parametrize("tied", TIED)
def test_quantize_train_save_load_and_export_from_python(tmp_path: Path, tied: bool) -> None:
    source = save_tiny(tmp_path / "model", tied=tied)
    scheme = {"default": "w2g32", "lm_head": "w4g64", "embed_tokens": "w4g64"}
    quantized = rqat.quantize(source, method="rtn", scheme=scheme, device="cpu")
    optimizer = quantized.optimizer(lr=1e-2, scale_lr=1e-3, train_embedding=True)
    for seed in range(2):
        stepped(quantized.model, optimizer, seed)
    rqat.save(quantized, tmp_path / "saved")
    loaded = rqat.load(tmp_path / "saved", device="cpu")
    assert all(layer.equals(quantized.layers[name]) for name, layer in loaded.layers.items())
    again = loaded.optimizer(lr=1e-2, train_embedding=True)
    for name, latent in again.latents().items():  # what lay beyond the grid comes back at its border
        assert ((latent - optimizer.latents()[name]).abs() < 1e-3).float().mean() > 0.9
    rqat.export(loaded, tmp_path / "out", "rqat")
    assert rqat.load_packed(tmp_path / "out", "cpu")[0].lm_head.bits == 4
