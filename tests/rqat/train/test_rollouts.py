"""Completions while training: from the weights as they are now, drawn by step, whoever writes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rqat.generation.engine import Engine
from rqat.generation.transformers_writer import TransformersWriter
from rqat.train.rollouts import Rollouts
from tests.rqat.generation.test_engine import random_model
from tests.tiny import tiny_tokenizer

PROMPTS = [[5, 9, 2, 40], [7], [5, 9, 2, 40]]


def written(rollouts: Rollouts, step: int = 0, temperature: float = 1.0) -> tuple[list[list[int]], list[list[float]]]:
    return rollouts(PROMPTS, step=step, temperature=temperature, top_p=1.0)


@pytest.mark.parametrize("backend", ["transformers", "engine"])
def test_what_is_drawn_depends_on_seed_step_and_process(backend: Any) -> None:
    model = random_model("qwen3")
    rollouts = Rollouts(model, tiny_tokenizer(), backend, limit=12)
    first = written(rollouts)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert written(rollouts) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert first[0][0] != first[0][2]  # equal prompts
    others = [written(rollouts, step=1)]
    others += [
        written(Rollouts(model, tiny_tokenizer(), backend, limit=12, **other)) for other in ({"seed": 1}, {"rank": 1})
    ]
    assert all(other != first for other in others)


@pytest.mark.parametrize("backend", ["transformers", "engine"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_writes_with_the_weights_as_they_are_now(backend: Any, family: str) -> None:
    """After weights, biases and norms were changed in place, as an optimizer does; and training mode does not count.

    Bound: float32 sums in another order.
    """
    model = random_model(family)
    rollouts = Rollouts(model, tiny_tokenizer(), backend, limit=10)
    model.train()
    model.gradient_checkpointing_enable()
    before = written(rollouts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert written(rollouts)[0] != before[0]
    assert model.training
    for temperature in (0.7, 1.0):
        tokens, logprobs = written(rollouts, temperature=temperature)
        for prompt, new, likely in zip(PROMPTS, tokens, logprobs, strict=True):
            logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1] / temperature
            right = logits.log_softmax(-1).gather(-1, torch.tensor(new)[:, None]).squeeze(-1)
            torch.testing.assert_close(torch.tensor(likely), right, rtol=0, atol=2e-4)


def test_the_engine_holds_no_copy_of_what_is_trained() -> None:
    model = random_model("qwen2")
    Rollouts(model, tiny_tokenizer(), "engine", limit=4)
    block = model.model.layers[0]
    for layers in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        parts = [module for name, module in block.named_modules() if name.endswith(layers)]
        assert len({part.weight.untyped_storage().data_ptr() for part in parts}) == 1
        assert len({part.bias.untyped_storage().data_ptr() for part in parts if part.bias is not None}) <= 1


def test_auto_is_transformers_on_the_cpu() -> None:
    model = random_model("qwen3")
    assert isinstance(Rollouts(model, tiny_tokenizer(), limit=4).writer, TransformersWriter)
    assert isinstance(Rollouts(model, tiny_tokenizer(), "engine", limit=4).writer, Engine)
