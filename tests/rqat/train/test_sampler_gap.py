"""The sampler agrees with the training forward, whoever writes; a sampler with other weights does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rqat.generation.engine import Engine
from rqat.generation.prompts import encode_prompts
from rqat.train.sampler_gap import sampler_gap
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [
    list(prompt.tokens)
    for prompt in encode_prompts([{"prompt": text} for text in ("1+1=", "what is 12+34? ", "9=")], tiny_tokenizer())
]


@pytest.mark.parametrize("made", [lambda model: None, Engine], ids=["transformers", "engine"])
def test_sampler_and_training_forward_agree(made: Any) -> None:
    """Bound: float32 sums of 128 terms in another order, through two layers."""
    torch.manual_seed(0)
    model = tiny_model()
    assert sampler_gap(model, tiny_tokenizer(), PROMPTS, writer=made(model)) < 1e-4


def test_another_model_is_told() -> None:
    torch.manual_seed(0)
    assert sampler_gap(tiny_model(), tiny_tokenizer(), PROMPTS, writer=Engine(tiny_model(1))) > 0.1
