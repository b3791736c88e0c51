"""Batched generation: padding, settings, seeds, lengths, loops; against generating one prompt at a time by hand."""

import pytest
import torch

from rqat.errors import DataError
from rqat.generation.complete import Generator, complete_all, complete_rows, plan_batches
from rqat.generation.engine import Engine
from rqat.generation.loops import is_looping
from rqat.generation.prompts import encode_prompts
from rqat.generation.sampling import Sampling, context_length
from rqat.generation.transformers_writer import TransformersWriter
from tests.tiny import tiny_model, tiny_tokenizer


def encode(texts, tokenizer, chat="auto"):
    return encode_prompts([{"prompt": text} for text in texts], tokenizer, chat)


TEXTS = ["1+2=", "a much longer prompt than the first one", "?", "12*12", "Mia has 3 shells."]


@pytest.fixture(scope="module")
def model():
    return tiny_model(3, hidden=64, context=128)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def greedy_by_hand(model, prompt, ends, limit):
    tokens = list(prompt.tokens)
    for _ in range(limit):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt.tokens) :]


@pytest.mark.parametrize("piece", [1, 5, 32, None])
def test_a_batch_gives_what_each_prompt_gives_alone(model, tokenizer, piece):
    prompts = encode(TEXTS, tokenizer)
    generator = Generator(model, tokenizer, Sampling(12), TransformersWriter(model, piece=piece))
    # A common token ends completions too, so that they leave the batch at different times.
    generator.ends |= {greedy_by_hand(model, prompts[0], generator.ends, 12)[2]}
    together = generator.complete(prompts, 12, seed=0)
    for prompt, completion in zip(prompts, together, strict=True):
        tokens = greedy_by_hand(model, prompt, generator.ends, 12)
        assert completion.tokens == tuple(tokens)
        assert completion.text == tokenizer.decode(tokens, skip_special_tokens=True)
        assert completion.truncated == (tokens[-1] not in generator.ends)


def test_the_checkpoints_own_generation_settings_do_not_matter(model, tokenizer):
    prompts = encode(TEXTS, tokenizer)
    expected = Generator(model, tokenizer, Sampling(8)).complete(prompts, 8, seed=0)
    sampled = Generator(model, tokenizer, Sampling(8, 1.0, 1.0)).complete(prompts, 8, seed=0)
    own = model.generation_config
    before = own.to_dict()
    try:
        own.update(do_sample=True, temperature=5.0, top_k=1, top_p=0.1, repetition_penalty=9.0, min_new_tokens=8)
        assert Generator(model, tokenizer, Sampling(8)).complete(prompts, 8, seed=0) == expected
        assert Generator(model, tokenizer, Sampling(8, 1.0, 1.0)).complete(prompts, 8, seed=0) == sampled
    finally:
        own.update(**before)


def test_sampling_repeats_with_its_seed_and_leaves_the_global_state_alone(model, tokenizer):
    prompts = encode(TEXTS, tokenizer)
    generator = Generator(model, tokenizer, Sampling(20, 1.0, 0.95))
    state = torch.get_rng_state()
    first = generator.complete(prompts, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert generator.complete(prompts, 20, seed=1) == first
    assert generator.complete(prompts, 20, seed=2) != first


def test_an_end_token_ends_a_completion(model, tokenizer):
    prompts = encode(TEXTS, tokenizer)
    generator = Generator(model, tokenizer, Sampling(12))
    tokens = greedy_by_hand(model, prompts[0], frozenset(), 12)
    generator.ends = frozenset({tokens[3]})
    completion = generator.complete(prompts[:1], 12, seed=0)[0]
    assert len(completion.tokens) == tokens.index(tokens[3]) + 1
    assert not completion.truncated


def test_unclosed_thinking(model, tokenizer):
    generator = Generator(model, tokenizer, Sampling(4))
    texts = ["<think>", "<think></think>", "none"]
    found = [c.unclosed_think for c in generator.complete(encode(texts, tokenizer), 4, seed=0)]
    assert found == [True, False, False]


def test_batches_hold_every_prompt_once_sorted_by_length(tokenizer):
    prompts = encode(TEXTS, tokenizer)
    batches, notes = plan_batches(prompts, 2, Sampling(10), 128)
    assert notes == []
    order = [index for batch in batches for index in batch.indices]
    assert sorted(order) == list(range(len(TEXTS)))
    lengths = [len(prompts[index].tokens) for index in order]
    assert lengths == sorted(lengths)
    assert [len(batch.indices) for batch in batches] == [2, 2, 1]


def test_the_context_bounds_new_tokens_and_prompts(model, tokenizer):
    prompts = encode(TEXTS, tokenizer)
    assert context_length(model) == 128
    batches, notes = plan_batches(prompts, 2, Sampling(120), 128)
    longest = max(len(prompt.tokens) for prompt in prompts)
    assert batches[-1].max_new_tokens == 128 - longest
    assert batches[0].max_new_tokens == 120
    assert notes == [
        f"The model's context holds 128 tokens: completions end after {128 - longest} tokens, "
        "all that the longest prompt leaves; 120 were asked for."
    ]
    with pytest.raises(
        DataError, match=r"1 of 5 prompts do not fit .* 39 tokens; the first is problem 1 with 39 tokens"
    ):
        plan_batches(prompts, 2, Sampling(1), 39)


@pytest.mark.parametrize(("where", "called"), [({"place": "rows.jsonl:7"}, "rows.jsonl:7"), ({}, "row 2")])
def test_a_prompt_that_does_not_fit_is_called_by_where_it_stands(model, tokenizer, where, called):
    rows = [{"prompt": "1 + 2 ="}, {"prompt": "1 + 2 = " * 2000, **where}]
    with pytest.raises(DataError, match=f"2 of 4 prompts do not fit .* the first is {called} with"):
        complete_rows(model, tokenizer, rows, 2, max_new_tokens=4, temperature=1.0)


@pytest.mark.parametrize("writer", [TransformersWriter, lambda model: Engine(model, rows=2)], ids=["plain", "engine"])
def test_batches_can_be_done_in_any_order(model, tokenizer, writer):
    """And one by one or several together, where the writer gains from it: the same completions, batch by batch."""
    prompts = encode(TEXTS, tokenizer)
    sampling = Sampling(16, 1.0, 1.0)
    generator = Generator(model, tokenizer, sampling, writer(model))
    batches, _ = plan_batches(prompts, 2, sampling, 128)

    def done(some, **settings):
        return [(batch, found) for batch, found, _ in complete_all(generator, prompts, some, 7, **settings)]

    forward = done(batches)
    assert [batch for batch, _ in forward] == batches
    assert done(batches[::-1]) == forward[::-1]
    assert done(batches[1:]) == forward[1:]
    for at_once in (0, 4, 100):
        assert done(batches, at_once=at_once) == forward


def test_an_engine_gets_several_batches_together(model, tokenizer, monkeypatch):
    prompts = encode(TEXTS, tokenizer)
    engine = Engine(model, rows=1)
    calls = []
    write = engine.write
    monkeypatch.setattr(engine, "write", lambda asked, *more, **s: calls.append(len(asked)) or write(asked, *more, **s))
    generator = Generator(model, tokenizer, Sampling(3), engine)
    batches, _ = plan_batches(prompts, 2, Sampling(3), 128)
    list(complete_all(generator, prompts, batches, 0))
    assert (engine.at_once, calls) == (4, [4, 1])


def test_progress_counts_up_to_every_prompt(model, tokenizer):
    prompts = encode(TEXTS, tokenizer)
    generator = Generator(model, tokenizer, Sampling(4))
    batches, _ = plan_batches(prompts, 2, Sampling(4), 128)
    told = []
    list(complete_all(generator, prompts, batches, 0, lambda done, speed: told.append((done, speed))))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == len(TEXTS)
    assert told[-1][1] > 0


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([5] * 32, True),
        ([5] * 31, False),
        ([1, 2, 3] * 11, True),
        (list(range(40)) + [7, 8] * 16, True),
        ([7, 8] * 16 + list(range(40)), False),
        (list(range(200)) * 4, True),
        (list(range(200)) * 3, False),
        (list(range(2000)), False),
        ([], False),
        ([1], False),
    ],
)
def test_loops(tokens, loops):
    assert is_looping(tokens) == loops
