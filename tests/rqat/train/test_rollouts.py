"""Sampling: the same for the same seed, whatever the batch; and the sampler agrees with the training forward."""

from __future__ import annotations

import torch

from rqat.train.rollouts import padded, sample, sampler_gap
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = ["1+1=", "what is 12+34? ", "9="]


def test_gives_the_samples_of_each_prompt_in_order() -> None:
    torch.manual_seed(0)
    done: list[int] = []
    completions = sample(
        tiny_model(), tiny_tokenizer(), PROMPTS, samples=3, max_new_tokens=5, temperature=1.0, batch=6,
        advance=done.append,
    )  # fmt: skip
    assert [len(group) for group in completions] == [3, 3, 3]
    assert done == [2, 3]
    for completion in (c for group in completions for c in group):
        assert 1 <= completion.tokens <= 5
        assert completion.ended or completion.tokens == 5
        assert "<eos>" not in completion.text


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> list[str]:
        torch.manual_seed(seed)
        groups = sample(tiny_model(), tiny_tokenizer(), PROMPTS, samples=2, max_new_tokens=5, temperature=1.0)
        return [c.text for group in groups for c in group]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_the_checkpoints_own_penalty_does_not_count() -> None:
    def drawn(penalty: float) -> list[str]:
        model = tiny_model()
        model.generation_config.repetition_penalty = penalty
        torch.manual_seed(0)
        groups = sample(model, tiny_tokenizer(), PROMPTS, samples=2, max_new_tokens=8, temperature=1.0)
        return [c.text for group in groups for c in group]

    assert drawn(0.01) == drawn(1.0)


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = padded(tiny_tokenizer(), PROMPTS, torch.device("cpu"))
    assert ids.shape == mask.shape == (3, 15)
    assert mask[2].tolist() == [0] * 13 + [1, 1]
    assert mask[1].all()


def test_sampler_and_training_forward_agree() -> None:
    """Bound: float32 sums of 128 terms in another order, through two layers."""
    torch.manual_seed(0)
    assert sampler_gap(tiny_model(), tiny_tokenizer(), PROMPTS) < 1e-4
