"""Writes completions with the model's own `generate`: slower than the engine, and right for every model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .sampling import own_settings_hidden, until_end
from .writer import REPORT_SECONDS, Written, limits_of

if TYPE_CHECKING:
    import torch
    import transformers

Tell = Callable[[int, int], None]

PIECE_TOKENS = 32
"""New tokens after which completions that have ended leave their batch."""


@dataclass
class _Row:
    """A completion being written: which prompt, how many new tokens it may have, and what there is of it."""

    index: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Settings:
    """What one call of `write` asks for."""

    temperature: float
    top_p: float
    ends: frozenset[int]
    logprobs: bool
    stream: Callable[[list[int]], None] | None


class TransformersWriter:
    """A `Writer` around `model.generate`.

    Args:
        model: in eval mode, on its device.
        rows: most completions that are written at the same time; None is all.
        piece: new tokens after which completions that have ended leave their batch. Otherwise all would be computed for
            as long as the longest one, which often is a loop up to the last token. None: they stay, so that the random
            numbers drawn for the others do not depend on them.
    """

    name = "transformers"
    at_once = 0

    def __init__(
        self, model: transformers.PreTrainedModel, *, rows: int | None = None, piece: int | None = PIECE_TOKENS
    ) -> None:
        self.model, self.rows, self.piece = model, rows, piece

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        ends: frozenset[int] = frozenset(),
        seeds: Sequence[int] | None = None,
        logprobs: bool = False,
        tell: Tell | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Written]:
        """See `Writer`."""
        import torch

        assert seeds is None, "`generate` has random numbers for all rows together"
        settings = _Settings(temperature, top_p, ends, logprobs, stream)
        rows = [_Row(index, limit) for index, limit in enumerate(limits_of(prompts, max_new_tokens))]
        size = self.rows or len(rows)
        with torch.no_grad(), own_settings_hidden(self.model):
            for start in range(0, len(rows), size):
                before = (start, sum(len(row.tokens) for row in rows))
                self._batch(prompts, rows[start : start + size], settings, tell, before)
                if tell:
                    tell(min(start + size, len(rows)), sum(len(row.tokens) for row in rows))
        return [Written(row.tokens, row.logprobs if logprobs else None) for row in rows]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        batch: list[_Row],
        settings: _Settings,
        tell: Tell | None,
        before: tuple[int, int],
    ) -> None:
        """Writes some completions, in pieces.

        Args:
            before: numbers of completions and of new tokens there were already.
        """
        import torch

        generate: Any = self.model.generate
        ids, mask = padded([prompts[row.index] for row in batch], settings.ends, self.model.device)
        alive, cache, done = batch, None, 0
        while alive:
            start = ids.shape[1]
            left = max(row.limit for row in alive) - done
            ended, written = len(batch) - len(alive), sum(len(row.tokens) for row in batch)
            output = generate(
                input_ids=ids,
                attention_mask=mask,
                synced_gpus=False,  # a process writes by itself, whatever others do
                past_key_values=cache,
                generation_config=self._config(left if self.piece is None else min(left, self.piece), settings),
                stopping_criteria=[_Watch(start, settings.ends, tell, (before[0] + ended, before[1] + written))]
                if tell
                else None,
                streamer=_Stream(settings.stream) if settings.stream else None,
            )
            new = output.sequences[:, start:]
            done += new.shape[1]
            stay = _take(alive, new, output.logits, settings)
            chosen = torch.tensor(stay, device=ids.device, dtype=torch.long)
            cache = output.past_key_values
            if stay and len(stay) < len(alive):
                cache.batch_select_indices(chosen)
            alive = [alive[place] for place in stay]
            ids = output.sequences[chosen]
            mask = torch.cat([mask[chosen], mask.new_ones(len(stay), new.shape[1])], dim=1)

    def _config(self, max_new_tokens: int, settings: _Settings) -> Any:
        from transformers import GenerationConfig

        chosen: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            # 0 switches top-k off; unset it would be 50.
            chosen = {"do_sample": True, "top_k": 0, "top_p": settings.top_p, "temperature": settings.temperature}
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=filler(settings.ends),
            eos_token_id=sorted(settings.ends) or None,
            return_dict_in_generate=True,
            output_logits=settings.logprobs,
            # A model that went through a trainer may have it switched off in its config.
            use_cache=True,
            disable_compile=True,
            **chosen,
        )


def padded(
    prompts: Sequence[Sequence[int]], ends: frozenset[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `(B, T)` of prompts, padded on the left."""
    import torch

    longest = max(map(len, prompts))
    ids = [[filler(ends)] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def filler(ends: frozenset[int]) -> int:
    """A token to fill up with; which one does not matter, since it is masked, or stands behind an end."""
    return min(ends, default=0)


def _take(alive: Sequence[_Row], new: torch.Tensor, logits: Any, settings: _Settings) -> list[int]:
    """Gives every row its new tokens `(B, T)` up to its end or its limit; returns which rows go on."""
    import torch

    likely = None
    if settings.logprobs:
        # One step at a time: all logits in float32 at once would be twice as large.
        steps = [
            (step.float() / (settings.temperature or 1.0)).log_softmax(-1).gather(-1, new[:, place, None]).squeeze(-1)
            for place, step in enumerate(logits)
        ]
        likely = torch.stack(steps, dim=1).tolist()
    stay = []
    for place, (row, tokens) in enumerate(zip(alive, new.tolist(), strict=True)):
        fresh = until_end(tokens[: row.limit - len(row.tokens)], settings.ends)
        row.tokens += fresh
        if likely is not None:
            row.logprobs += likely[place][: len(fresh)]
        if len(row.tokens) < row.limit and row.tokens[-1] not in settings.ends:
            stay.append(place)
    return stay


class _Stream:
    """A streamer as transformers calls it: first with the prompt, then with every new token."""

    def __init__(self, stream: Callable[[list[int]], None]) -> None:
        self._stream = stream
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            self._stream(value.flatten().tolist())
        self._begun = True

    def end(self) -> None: ...


class _Watch:
    """A stopping criterion that stops nothing: it counts rows that have ended, and reports now and then."""

    def __init__(self, start: int, ends: frozenset[int], tell: Tell, before: tuple[int, int]) -> None:
        self._start, self._ends, self._tell, self._before = start, ends, tell, before
        self._told = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        now = time.perf_counter()
        if now - self._told >= REPORT_SECONDS:
            self._told = now
            new = input_ids[:, self._start :]
            ended = torch.isin(new, torch.tensor(sorted(self._ends), device=new.device)).any(dim=1)
            self._tell(self._before[0] + int(ended.sum()), self._before[1] + int(new.numel()))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
