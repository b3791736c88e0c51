"""Both writers keep one promise: tokens, limits, ends, log-probabilities; and no setting of a checkpoint counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rqat.generation.engine import Engine
from rqat.generation.sampling import end_tokens, own_settings_hidden
from rqat.generation.transformers_writer import TransformersWriter
from rqat.generation.writer import Writer
from tests.tiny import tiny_model, tiny_tokenizer

Make = Callable[[Any], Writer]

WRITERS: dict[str, Make] = {
    "transformers": TransformersWriter,
    "transformers, in pieces": lambda model: TransformersWriter(model, rows=2, piece=3),
    "engine": Engine,
    "engine, in two rows": lambda model: Engine(model, rows=2),
}

PROMPTS = [list(map(ord, text)) for text in ("ab", "a longer prompt", "c")]

FOREIGN = {
    "do_sample": True,
    "temperature": 5.0,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.9,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 8,
    "max_length": 17,
    "suppress_tokens": list(range(3, 90)),
    "begin_suppress_tokens": list(range(60, 128)),
    "bad_words_ids": [[40]],
    "sequence_bias": [[[41], 50.0]],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 5,
    "num_beams": 3,
    "penalty_alpha": 0.6,
    "stop_strings": ["a"],
}
"""Settings that a checkpoint may come with, each of which would change what is written."""


def expected_logprobs(model: Any, prompt: list[int], tokens: list[int], temperature: float) -> Any:
    """Of every token, by one forward over the whole sequence; top_p does not count."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
    return (logits / (temperature or 1.0)).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_logprobs_are_those_of_a_plain_forward(make: Make, temperature: float, top_p: float) -> None:
    """Bound: float32 sums in another order."""
    model = tiny_model(3)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "ends": frozenset({1, 40, 90})}
    written = make(model).write(PROMPTS, [9, 7, 1], logprobs=True, **settings)
    torch.manual_seed(0)
    plain = make(model).write(PROMPTS, [9, 7, 1], **settings)
    assert [one.tokens for one in plain] == [one.tokens for one in written]
    assert all(one.logprobs is None for one in plain)
    for prompt, (tokens, logprobs) in zip(PROMPTS, written, strict=True):
        right = expected_logprobs(model, prompt, tokens, temperature)
        torch.testing.assert_close(torch.tensor(logprobs), right, rtol=0, atol=2e-4)


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
def test_limits_ends_and_streams(make: Make) -> None:
    model = tiny_model(3)
    full = [one.tokens for one in make(model).write(PROMPTS, 9)]
    assert [len(tokens) for tokens in full] == [9, 9, 9]
    ends = frozenset({full[0][4]})
    for tokens, whole, limit in zip(
        [one.tokens for one in make(model).write(PROMPTS, [9, 2, 5], ends=ends)], full, [9, 2, 5], strict=True
    ):
        stop = next((place + 1 for place, token in enumerate(whole) if token in ends), 9)
        assert tokens == whole[: min(stop, limit)]
    streamed: list[int] = []
    [one] = make(model).write(PROMPTS[:1], 9, stream=streamed.extend)
    assert streamed == one.tokens == full[0]
    told: list[tuple[int, int]] = []
    make(model).write(PROMPTS, 9, tell=lambda *now: told.append(now))
    assert told == sorted(told)
    with pytest.raises(ValueError, match="shorter"):
        make(model).write(PROMPTS, [1, 2])


@pytest.mark.parametrize("make", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", FOREIGN)
def test_settings_of_the_checkpoint_change_nothing(make: Make, temperature: float, name: str) -> None:
    def written(model: Any) -> list[list[int]]:
        torch.manual_seed(0)
        ends = end_tokens(model, tiny_tokenizer())
        return [one.tokens for one in make(model).write(PROMPTS, 8, temperature=temperature, ends=ends)]

    model = tiny_model(3)
    right = written(model)
    setattr(model.generation_config, name, FOREIGN[name])
    before = model.generation_config.to_dict()
    assert written(model) == right
    assert model.generation_config.to_dict() == before


def test_end_tokens_are_the_checkpoints_and_the_tokenizers() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [5, 6]
    assert end_tokens(model, tiny_tokenizer()) == {1, 5, 6}
    with own_settings_hidden(model):
        assert end_tokens(model, tiny_tokenizer()) == {1, 5, 6}
        assert model.generation_config.pad_token_id is None
    assert model.generation_config.pad_token_id == 0
