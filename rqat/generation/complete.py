"""Prompts -> completions, with what one wants to know of them: lengths, truncation, loops, unclosed thinking."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..contracts import Completion, Row
from ..errors import DataError, ModelError
from .loops import is_looping
from .prompts import THINK, Prompt, encode_openings, encode_prompts, placed, token_of_end, words_of_end
from .sampling import Sampling, context_length, end_tokens, seed_of, too_little_room, until_end
from .transformers_writer import TransformersWriter
from .writer import Writer, limits_of

if TYPE_CHECKING:
    import transformers

    from .server_writer import ServedModel

Report = Callable[[float, str], None]
"""Receives how many completions are done, and a short figure such as `812 tok/s`."""

Pace = Callable[[int, float], None]
"""Receives how many completions are done, and how many tokens per second were written so far."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are completed together.

    Attributes:
        indices: which of all prompts, shortest first.
        max_new_tokens: what is asked for, or less where the context leaves less room.
        part_of: the indices of the batch that it is a part of, which decide its sampling; none where it is whole.
    """

    indices: tuple[int, ...]
    max_new_tokens: int
    part_of: tuple[int, ...] = ()

    def part(self, indices: Sequence[int]) -> Batch:
        """Some of its prompts, as a writer may complete them that draws for every prompt by itself."""
        return self if tuple(indices) == self.indices else replace(self, indices=tuple(indices), part_of=self.indices)


class Generator:
    """A model with its tokenizer, ready to complete batches of prompts.

    Args:
        writer: what writes with the model; None is transformers.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel | ServedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        sampling: Sampling,
        writer: Writer | None = None,
    ) -> None:
        known: Any = model
        self.model, self.writer = known, writer or TransformersWriter(known)
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.ends = end_tokens(model, tokenizer)

    def complete(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | Sequence[int],
        seed: int | None,
        report: Callable[[int, int], None] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Completion]:
        """Completes prompts in one call of the writer.

        Args:
            max_new_tokens: of all, or of each.
            seed: of the sampling; the state of the global generators is as before afterwards. None draws from the
                global generators as they are.
            report: called now and then with the number of finished completions and of new tokens.
            seeds: of every prompt, for a writer that takes them.
            logprobs: keep how likely every token was.
            stream: receives the tokens of a single prompt as they are written.

        Raises:
            ModelError: out of memory.
        """
        import torch

        limits = limits_of(prompts, max_new_tokens)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with nullcontext() if seed is None else torch.random.fork_rng(devices=devices):
                if seed is not None:
                    torch.manual_seed(seed)
                written = self.writer.write(
                    [prompt.tokens for prompt in prompts],
                    max_new_tokens,
                    temperature=self.sampling.temperature,
                    top_p=self.sampling.top_p,
                    ends=self.ends,
                    seeds=seeds,
                    logprobs=logprobs,
                    tell=report,
                    stream=stream,
                )
        except torch.OutOfMemoryError as error:
            hint = f"Use a smaller batch: {max(1, len(prompts) // 2)} or less; or allow fewer new tokens."
            if self.writer.at_once:  # batches are none of its concern
                hint = "Allow fewer new tokens, or free memory of the device: there is none for a single completion."
            raise ModelError(
                f"Out of memory while generating {len(prompts)} completions of up to {max(limits)} tokens at once.",
                hint=hint,
            ) from error
        return [
            completion_from(self.tokenizer, prompt, one.tokens, self.ends, limit, one.logprobs)
            for prompt, one, limit in zip(prompts, written, limits, strict=True)
        ]


def completion_from(
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompt: Prompt,
    tokens: Sequence[int],
    ends: frozenset[int],
    limit: int,
    logprobs: Sequence[float] | None = None,
) -> Completion:
    """What is known of new tokens; those behind the first end are left out."""
    kept = until_end(list(tokens), ends)
    # Some checkpoints ask for spaces to be tidied: then the text would not be what was written.
    text = str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    opened = THINK in text or prompt.opens_thinking
    return Completion(
        text=text,
        tokens=tuple(kept),
        ended=bool(kept) and kept[-1] in ends,
        limit=limit,
        looping=is_looping(kept),
        unclosed_think=opened and "</think>" not in text,
        logprobs=None if logprobs is None else tuple(logprobs[: len(kept)]),
    )


def plan_batches(
    prompts: Sequence[Prompt],
    size: int,
    sampling: Sampling,
    context: int,
    place: Callable[[int], str] = "problem {}".format,
) -> tuple[list[Batch], list[str]]:
    """Sorts prompts by length into batches; the second result are notes for the report.

    Args:
        place: what a prompt is called, by its index.

    Raises:
        DataError: a prompt leaves no room for a single new token.
    """
    lengths = [len(prompt.tokens) for prompt in prompts]
    too_long = [index for index, length in enumerate(lengths) if length >= context]
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(prompts)} prompts do not fit into the model's context of {context} tokens; "
            f"the first is {place(too_long[0])} with {lengths[too_long[0]]} tokens.",
            hint="Use a model with a longer context, or fewer or shorter problems (`limit`).",
        )
    order = sorted(range(len(prompts)), key=lambda index: (lengths[index], index))
    batches = []
    for start in range(0, len(order), size):
        indices = tuple(order[start : start + size])
        room = context - lengths[indices[-1]]
        batches.append(Batch(indices, min(sampling.max_new_tokens, room)))
    shortest = min((batch.max_new_tokens for batch in batches), default=sampling.max_new_tokens)
    less = too_little_room(shortest, sampling.max_new_tokens)
    return batches, [f"The model's context holds {context} tokens: {less}"] if less else []


def complete_all(
    generator: Generator,
    prompts: Sequence[Prompt],
    batches: Sequence[Batch],
    seed: int,
    report: Pace | None = None,
    *,
    at_once: int | None = None,
) -> Iterator[tuple[Batch, list[Completion], float]]:
    """Completes batch by batch; yields each with its completions and the seconds it took.

    A batch's sampling depends on the seed and its own indices only, so batches may be left out and done another time.

    Args:
        at_once: completions after which finished batches are handed on, where the writer gains from getting several
            batches together; None is what it says itself.
    """
    done, tokens, began = 0, 0, time.perf_counter()
    own = generator.writer.at_once
    for group in _groups(batches, own and (own if at_once is None else at_once)):
        start = time.perf_counter()
        before = tokens

        def tell(finished: int, new: int, done: int = done, before: int = before) -> None:
            assert report is not None
            report(done + finished, (before + new) / max(time.perf_counter() - began, 1e-9))

        chosen = [prompts[index] for batch in group for index in batch.indices]
        limits = [batch.max_new_tokens for batch in group for _ in batch.indices]
        numbers = [seed_of(seed, batch.part_of or batch.indices) for batch in group]
        each = [seed_of(number, place) for number, batch in zip(numbers, group, strict=True) for place in batch.indices]
        completions = generator.complete(
            chosen, limits, numbers[0], tell if report else None, seeds=each if own else None
        )
        done += len(completions)
        tokens += sum(len(completion.tokens) for completion in completions)
        if report:
            report(done, tokens / max(time.perf_counter() - began, 1e-9))
        taken, found = time.perf_counter() - start, iter(completions)
        for batch in group:
            count = len(batch.indices)
            yield batch, list(itertools.islice(found, count)), taken * count / len(completions)


def pace_of(tokens_per_s: float) -> str:
    """How fast completions are written, as a `Report` shows it."""
    return f"{tokens_per_s:.0f} tok/s"


def _groups(batches: Sequence[Batch], at_once: int) -> Iterator[list[Batch]]:
    """Batches that are written together: as many as have `at_once` prompts at most, and at least one."""
    group: list[Batch] = []
    for batch in batches:
        if group and sum(len(one.indices) for one in [*group, batch]) > at_once:
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def sample(
    generator: Generator,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    advance: Callable[[int], None] = lambda done: None,
) -> list[list[Completion]]:
    """`samples` completions of each prompt, in the order of the prompts, drawn from torch's global generators.

    Args:
        advance: called with the number of prompts done.

    Raises:
        ModelError: out of memory.
    """
    asked = [prompt for prompt in prompts for _ in range(samples)]
    completions = generator.complete(
        asked, generator.sampling.max_new_tokens, None, lambda done, tokens: advance(done // samples)
    )
    return [completions[start : start + samples] for start in range(0, len(completions), samples)]


def complete_rows(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    rows: Sequence[Row],
    samples: int = 1,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch: int = 32,
    turn: Literal["assistant", "user"] = "assistant",
    writer: Writer | None = None,
    report: Report | None = None,
) -> list[list[Completion]]:
    """Completions of rows' prompts, written as evaluations write them: `samples` of each row.

    Args:
        batch: completions written together.
        turn: whose words are written: the assistant's, after the row's prompt; or the user's, in place of it.

    Raises:
        DataError: a row has no prompt, or one that does not fit into the model's context.
        ModelError: out of memory; the chat template is broken.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p)
    generator = Generator(model, tokenizer, sampling, writer)
    place = placed(rows)
    if turn == "user":
        openings = encode_openings(rows, tokenizer, place)
        words = {text: words_of_end(tokenizer, text) for text in {text for _, text in openings}}  # mostly one
        asked, behind = [prompt for prompt, _ in openings], [words[text] for _, text in openings]
        ends = {token_of_end(tokenizer, text) for text in words}
        generator.ends |= {token for token in ends if token is not None}
    else:
        asked, behind = encode_prompts(rows, tokenizer, place=place), [""] * len(rows)
    prompts = [prompt for prompt in asked for _ in range(samples)]
    context = context_length(model)
    batches, _ = plan_batches(prompts, batch, sampling, context, lambda index: place(index // samples))
    found: dict[int, Completion] = {}

    def tell(done: int, tokens_per_s: float) -> None:
        assert report is not None
        report(done, pace_of(tokens_per_s))

    for done, completions, _ in complete_all(
        generator,
        prompts,
        batches,
        seed,
        tell if report else None,
        at_once=len(prompts),
    ):
        found.update(zip(done.indices, completions, strict=True))
    return [
        [_before(text, found[index]) for index in range(place * samples, (place + 1) * samples)]
        for place, text in enumerate(behind)
    ]


def _before(behind: str, completion: Completion) -> Completion:
    """A completion up to where the model goes on with the words that the template has behind the turn."""
    text, found, _ = completion.text.partition(behind) if behind else (completion.text, "", "")
    return replace(completion, text=text, ended=True) if found else completion
