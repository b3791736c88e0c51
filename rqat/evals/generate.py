"""Batched generation with what an evaluation wants to know about it: lengths, truncation, loops, unclosed thinking."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..errors import DataError, ModelError

if TYPE_CHECKING:
    import torch
    import transformers

Report = Callable[[float, str], None]
"""Receives how many completions are done, and a short figure such as `812 tok/s`."""

LOOP_PERIOD, LOOP_TIMES, LOOP_TOKENS = 256, 4, 32
"""A completion loops when it ends in a piece of up to 256 tokens, repeated 4 times or more over at least 32 tokens."""

PIECE_TOKENS = 32
"""New tokens after which completions that have ended leave their batch."""

REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: tokens after which a completion is cut off.
        temperature: 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`; there is no top-k bound.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it: with the chat template, if there is one, and as tokens."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: without special tokens.
        tokens: number of new tokens, the end token included.
        truncated: cut off before the model ended by itself.
        looping: ends in a repeated piece, see `is_looping`.
        unclosed_think: opened `<think>` and never closed it.
    """

    text: str
    tokens: int
    truncated: bool
    looping: bool
    unclosed_think: bool


@dataclass(frozen=True)
class Batch:
    """Prompts that are completed together.

    Attributes:
        indices: which of all prompts, shortest first.
        max_new_tokens: what is asked for, or less where the context leaves less room.
    """

    indices: tuple[int, ...]
    max_new_tokens: int


def encode(
    texts: Sequence[str], tokenizer: transformers.PreTrainedTokenizerBase, chat: Literal["auto", "yes", "no"] = "auto"
) -> list[Prompt]:
    """Wraps texts in the chat template as `chat` says, and turns them into tokens.

    Raises:
        DataError: a chat template is asked for and there is none, or a prompt has no tokens.
    """
    if chat == "yes" and not tokenizer.chat_template:
        raise DataError("chat: 'yes' asks for a chat template; the tokenizer has none.", hint="Use chat: auto or no.")
    templated = chat != "no" and bool(tokenizer.chat_template)
    if templated:
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
            )
            for text in texts
        ]
    # A template writes its own begin-of-sequence token.
    found = tokenizer(list(texts), add_special_tokens=not templated)["input_ids"] if texts else []
    prompts = [Prompt(text, tuple(ids)) for text, ids in zip(texts, found, strict=True)]
    empty = [index for index, prompt in enumerate(prompts) if not prompt.tokens]
    if empty:
        raise DataError(f"Problem {empty[0]} has an empty prompt.", hint="Check the task's data.")
    return prompts


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hex digest of all prompts in order; equal hashes mean that models were asked the same."""
    return hashlib.sha256("\x00".join(prompt.text for prompt in prompts).encode()).hexdigest()


def context_length(model: transformers.PreTrainedModel) -> int:
    """Tokens that prompt and completion may have together."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def plan_batches(
    prompts: Sequence[Prompt], size: int, sampling: Sampling, context: int
) -> tuple[list[Batch], list[str]]:
    """Sorts prompts by length into batches; the second result are notes for the report.

    Raises:
        DataError: a prompt leaves no room for a single new token.
    """
    lengths = [len(prompt.tokens) for prompt in prompts]
    too_long = [index for index, length in enumerate(lengths) if length >= context]
    if too_long:
        raise DataError(
            f"{len(too_long)} of {len(prompts)} prompts do not fit into the model's context of {context} tokens; "
            f"the first is problem {too_long[0]} with {lengths[too_long[0]]} tokens.",
            hint="Use a model with a longer context, or fewer or shorter problems (`limit`).",
        )
    order = sorted(range(len(prompts)), key=lambda index: (lengths[index], index))
    batches = []
    for start in range(0, len(order), size):
        indices = tuple(order[start : start + size])
        room = context - lengths[indices[-1]]
        batches.append(Batch(indices, min(sampling.max_new_tokens, room)))
    shortest = min((batch.max_new_tokens for batch in batches), default=sampling.max_new_tokens)
    if shortest == sampling.max_new_tokens:
        return batches, []
    return batches, [
        f"The context of {context} tokens leaves room for {shortest} new tokens after the longest prompt; "
        f"{sampling.max_new_tokens} were asked for."
    ]


class Writer(Protocol):
    """What writes in place of transformers' `generate`; `rqat.packed.engine.Engine` is one."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float,
        top_p: float,
        ends: frozenset[int],
        tell: Callable[[int, int], None] | None,
    ) -> list[list[int]]:
        """New tokens of every prompt: `max_new_tokens`, or fewer when the last is the first of `ends`.

        Args:
            temperature: 0 is greedy; else tokens are drawn with torch's global generators.
            tell: called now and then with the number of finished completions and of new tokens.
        """


class Generator:
    """A model with its tokenizer, ready to complete batches of prompts.

    Args:
        writer: writes in place of the model's own `generate`, when there is one.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        sampling: Sampling,
        writer: Writer | None = None,
    ) -> None:
        self.model = model
        self.writer = writer
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.ends = end_tokens(model, tokenizer)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends)

    def complete(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        seed: int,
        report: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Completes one batch, left padded.

        Args:
            seed: of the sampling; the state of the global generators is as before afterwards.
            report: called now and then with the number of finished completions and of new tokens.

        Raises:
            ModelError: out of memory.
        """
        import torch

        devices = [self.model.device] if self.model.device.type == "cuda" else []
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=devices), _plain_defaults(self.model):
                torch.manual_seed(seed)
                rows = self._new_tokens(prompts, max_new_tokens, report)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"Out of memory while generating {len(prompts)} completions of up to {max_new_tokens} tokens at once.",
                hint=f"Use a smaller batch: {max(1, len(prompts) // 2)} or less.",
            ) from error
        return [self._completion(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def _new_tokens(
        self, prompts: Sequence[Prompt], max_new_tokens: int, report: Callable[[int, int], None] | None
    ) -> list[list[int]]:
        if self.writer is None:
            return self._generate(prompts, max_new_tokens, report)
        return self.writer.write(
            [prompt.tokens for prompt in prompts],
            max_new_tokens,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            ends=self.ends,
            tell=report,
        )

    def _generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, report: Callable[[int, int], None] | None
    ) -> list[list[int]]:
        """New tokens of every prompt, in pieces: after each, completions that have ended leave the batch.

        Otherwise all would be computed for as long as the longest one, which often is a loop up to the last token.
        """
        import torch

        generate: Any = self.model.generate
        ids, mask = self._padded(prompts)
        alive = list(range(len(prompts)))
        rows: list[list[int]] = [[] for _ in prompts]
        cache: Any = None
        left = max_new_tokens
        while alive and left > 0:
            told = (len(prompts) - len(alive), sum(map(len, rows)))
            output = generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=self._config(min(left, PIECE_TOKENS)),
                stopping_criteria=[_Watch(ids.shape[1], self.ends, report, told)] if report else None,
            )
            new = output.sequences[:, ids.shape[1] :].tolist()
            for index, row in zip(alive, new, strict=True):
                rows[index] += row
            left -= len(new[0])
            cache = output.past_key_values
            stay = [place for place, row in enumerate(new) if self.ends.isdisjoint(row)]
            alive = [alive[place] for place in stay]
            chosen = torch.tensor(stay, device=ids.device, dtype=torch.long)
            ids = output.sequences[chosen]
            mask = torch.cat([mask[chosen], mask.new_ones(len(stay), len(new[0]))], dim=1)
            if stay and len(stay) < len(new):
                cache.batch_select_indices(chosen)
        return rows

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        longest = max(len(prompt.tokens) for prompt in prompts)
        ids = [[self.pad] * (longest - len(prompt.tokens)) + list(prompt.tokens) for prompt in prompts]
        mask = [[0] * (longest - len(prompt.tokens)) + [1] * len(prompt.tokens) for prompt in prompts]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _config(self, max_new_tokens: int) -> Any:
        from transformers import GenerationConfig

        chosen: dict[str, Any] = {"do_sample": False}
        if self.sampling.temperature > 0:
            # 0 switches top-k off; unset it would be 50.
            chosen = {"do_sample": True, "top_k": 0, "top_p": self.sampling.top_p}
            chosen["temperature"] = self.sampling.temperature
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad,
            eos_token_id=sorted(self.ends),
            return_dict_in_generate=True,
            **chosen,
        )

    def _completion(self, prompt: Prompt, row: list[int]) -> Completion:
        end = next((position for position, token in enumerate(row) if token in self.ends), None)
        tokens = row if end is None else row[: end + 1]
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        opened = "<think>" in text or prompt.text.rstrip().endswith("<think>")
        return Completion(
            text=text,
            tokens=len(tokens),
            truncated=end is None,
            looping=is_looping(tokens),
            unclosed_think=opened and "</think>" not in text,
        )


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the tokens end in one piece, said again and again."""
    array = np.asarray(tokens)[-LOOP_PERIOD * LOOP_TIMES :]
    for period in range(1, min(LOOP_PERIOD, len(array) // LOOP_TIMES) + 1):
        span = max(period * LOOP_TIMES, LOOP_TOKENS)
        if span <= len(array) and bool((array[-span + period :] == array[-span:-period]).all()):
            return True
    return False


def complete_all(
    generator: Generator, prompts: Sequence[Prompt], batches: Sequence[Batch], seed: int, report: Report | None = None
) -> Iterator[tuple[Batch, list[Completion], float]]:
    """Completes batch by batch; yields each with its completions and the seconds it took.

    A batch's sampling depends on the seed and its own indices only, so batches may be left out and done another time.
    """
    done, tokens, began = 0, 0, time.perf_counter()
    for batch in batches:
        start = time.perf_counter()
        before = tokens

        def tell(finished: int, new: int, done: int = done, before: int = before) -> None:
            assert report is not None
            report(done + finished, f"{(before + new) / max(time.perf_counter() - began, 1e-9):.0f} tok/s")

        chosen = [prompts[index] for index in batch.indices]
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{batch.indices}".encode()).digest()[:6], "big")
        completions = generator.complete(chosen, batch.max_new_tokens, own_seed, tell if report else None)
        done += len(completions)
        tokens += sum(completion.tokens for completion in completions)
        if report:
            report(done, f"{tokens / max(time.perf_counter() - began, 1e-9):.0f} tok/s")
        yield batch, completions, time.perf_counter() - start


class _Watch:
    """A stopping criterion that stops nothing: it counts rows that have ended, and reports now and then."""

    def __init__(
        self, start: int, ends: frozenset[int], report: Callable[[int, int], None], before: tuple[int, int]
    ) -> None:
        self._start, self._ends, self._report = start, ends, report
        self._before = before
        self._told = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        now = time.perf_counter()
        if now - self._told >= REPORT_SECONDS:
            self._told = now
            new = input_ids[:, self._start :]
            ended = torch.isin(new, torch.tensor(sorted(self._ends), device=new.device)).any(dim=1)
            self._report(self._before[0] + int(ended.sum()), self._before[1] + int(new.numel()))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _plain_defaults(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Hides the checkpoint's own generation settings, which would fill in every one that is not named."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a completion: the checkpoint's own and the tokenizer's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    if not ends:
        raise ModelError("The model has no end token.", hint="Set eos_token_id in its generation_config.json.")
    return frozenset(int(end) for end in ends)
