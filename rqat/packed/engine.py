"""Writes completions with a `Decoder`: static cache, rows that come and go, whole steps as CUDA graphs.

Every completion has a slot of the cache. A step computes one token for each active row; how many rows there are is
rounded up to a few sizes, and for each size the whole step, from the tokens to the next tokens, is captured once as a
CUDA graph. The host looks at the tokens every few steps only: rows that have ended leave, prompts that wait take their
slots. On the CPU the same loop runs without graphs, token by token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rqat_kernels.decode import append_greedy

from .decoder import Cache, Decoder

if TYPE_CHECKING:
    import transformers

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows for which steps are captured."""

PIECE = 16
"""Steps between two looks of the host at the tokens, on CUDA. An ended row is computed for at most so many too many."""

PREFILL_TOKENS = 16384
"""Prompt tokens, padding included, that are read at once."""

ROUNDING = 256
"""A cache's positions are a multiple of this, so that a batch of slightly longer prompts fits into the one there is."""

CACHE_SHARE = 0.85
"""Of the free memory, how much the cache may take."""

REPORT_SECONDS = 0.5


@dataclass
class _Row:
    """A completion being written: which prompt, in which slot; its newest token stands at `position`."""

    index: int
    slot: int
    start: int
    most: int
    position: int
    tokens: list[int] = field(default_factory=list)


@dataclass
class _State:
    """What steps read and write on the device; the last slot belongs to the rows that only fill up a size.

    Attributes:
        tokens: `(S, P)` of every slot, prompts and completions.
        slots, positions, advance: `(B,)`, of every row; `advance` is 0 for rows that only fill up.
    """

    cache: Cache
    tokens: Tensor
    slots: Tensor
    positions: Tensor
    advance: Tensor


class Engine:
    """Writes completions with a dense decoder, packed or not.

    Args:
        model: of one of rqat's families, in eval mode, on its device.
        graphs: capture steps as CUDA graphs; None: on CUDA.
        rows: most completions that are written at the same time.

    Raises:
        ModelError: the model cannot be decoded here, see `Decoder`.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, *, graphs: bool | None = None, rows: int = SIZES[-1]
    ) -> None:
        self.decoder = Decoder(model)
        self.device = self.decoder.embeddings.device
        self.graphs = self.device.type == "cuda" if graphs is None else graphs
        self.rows = min(rows, SIZES[-1])
        self._state: _State | None = None
        self._captured: dict[tuple[int, str], torch.cuda.CUDAGraph] = {}
        self._temperature = torch.ones((), device=self.device)
        self._top_p = torch.ones((), device=self.device)

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        ends: frozenset[int] = frozenset(),
        tell: Callable[[int, int], None] | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[list[int]]:
        """New tokens of every prompt: up to `max_new_tokens`, or to the first of `ends`, which is the last one then.

        Args:
            max_new_tokens: of all, or of each.
            temperature: 0 is greedy; else tokens are drawn with torch's global generators.
            top_p: nucleus sampling bound (arXiv 1904.09751).
            tell: called now and then with the number of finished completions and of new tokens.
            stream: receives the tokens of a single prompt as they are written.

        Raises:
            torch.OutOfMemoryError: there is no room for the cache of a single row.
        """
        mode = "greedy" if temperature <= 0 else "nucleus" if top_p < 1 else "sample"
        if mode != "greedy":
            self._temperature.fill_(temperature)
            self._top_p.fill_(top_p)
        piece = PIECE if self.graphs else 1
        most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        longest = max((len(prompt) + new for prompt, new in zip(prompts, most, strict=True)), default=0)
        state = self._room(min(len(prompts), self.rows), longest + piece)
        free = list(range(len(state.tokens) - 1))[: self.rows]
        slots = len(free)
        waiting = deque(range(len(prompts)))
        finished: list[list[int]] = [[] for _ in prompts]
        active: list[_Row] = []
        count, done, told = 0, 0, time.perf_counter()
        while waiting or active:
            if waiting and (not active or 8 * len(free) >= slots):
                active += self._join(prompts, most, waiting, free, state, mode)
                self._place(active, state, mode)
            left = max(row.start + row.most - 1 - row.position for row in active)
            self._advance(active, min(piece, left), state, mode)
            staying = []
            for row, new in zip(active, self._read(active, state), strict=True):
                fresh = _until_end(new[: row.most - len(row.tokens)], ends)
                row.tokens += fresh
                count += len(fresh)
                if stream:
                    stream(fresh)
                if len(row.tokens) == row.most or row.tokens[-1] in ends:
                    finished[row.index] = row.tokens
                    free.append(row.slot)
                    done += 1
                else:
                    staying.append(row)
            if len(staying) < len(active):
                active = staying
                self._place(active, state, mode)
            now = time.perf_counter()
            if tell and now - told >= REPORT_SECONDS:
                told = now
                tell(done, count)
        return finished

    def release(self) -> None:
        """Gives the cache's memory back; the next completions take it anew."""
        self._captured.clear()
        self._state = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _room(self, slots: int, positions: int) -> _State:
        """A state with at least one slot of so many positions, and with as many as asked for if there is memory."""
        positions = -(-positions // ROUNDING) * ROUNDING
        state = self._state
        if state is not None:
            have, reach = state.tokens.shape
            if have - 1 >= slots and reach >= positions:
                return state
            slots, positions = max(slots, have - 1), max(positions, reach)
            del state
        self.release()
        if self.device.type == "cuda":
            fitting = int(CACHE_SHARE * torch.cuda.mem_get_info(self.device)[0] / self.decoder.cache_bytes(positions))
            slots = max(1, min(slots, fitting - 1))
        numbers = [torch.zeros(SIZES[-1], dtype=torch.long, device=self.device) for _ in range(3)]
        tokens = torch.zeros(slots + 1, positions, dtype=torch.long, device=self.device)
        self._state = _State(self.decoder.make_cache(slots + 1, positions), tokens, *numbers)
        return self._state

    def _join(
        self,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        waiting: deque[int],
        free: list[int],
        state: _State,
        mode: str,
    ) -> list[_Row]:
        """Gives free slots to prompts that wait, reads those prompts and chooses their first tokens."""
        joined: list[_Row] = []
        while waiting and free:
            some: list[_Row] = []
            longest = 0
            while waiting and free:
                length = len(prompts[waiting[0]])
                if some and max(longest, length) * (len(some) + 1) > PREFILL_TOKENS:
                    break
                longest = max(longest, length)
                index = waiting.popleft()
                some.append(_Row(index, free.pop(0), length, most[index], length))
            padded = [[*prompts[row.index], *[0] * (longest - row.start)] for row in some]
            tokens = torch.tensor(padded, device=self.device)
            lengths = torch.tensor([row.start for row in some], device=self.device)
            slots = torch.tensor([row.slot for row in some], device=self.device)
            logits = self.decoder.prefill(tokens, lengths, slots, state.cache)
            state.tokens[slots, lengths] = self._choose(logits, mode)
            joined += some
        return joined

    def _place(self, active: Sequence[_Row], state: _State, mode: str) -> None:
        """Writes down on the device which rows there are; captures their step if it was not yet."""
        size = self._size(len(active))
        if self.graphs and size:
            self._graph(size, state, mode)
        fill = size - len(active)
        spare = len(state.tokens) - 1
        values = [
            [row.slot for row in active] + [spare] * fill,
            [row.position for row in active] + [0] * fill,
            [1] * len(active) + [0] * fill,
        ]
        if size:
            found = torch.tensor(values, device=self.device)
            for target, source in zip((state.slots, state.positions, state.advance), found, strict=True):
                target[:size] = source

    def _advance(self, active: Sequence[_Row], steps: int, state: _State, mode: str) -> None:
        """Computes the next tokens of all rows, `steps` times."""
        size = self._size(len(active))
        for _ in range(steps):
            if self.graphs:
                self._captured[size, mode].replay()
            else:
                self._step(size, state, mode)
        for row in active:
            row.position += steps

    def _read(self, active: Sequence[_Row], state: _State) -> list[list[int]]:
        """What every row has been given since it was last looked at."""
        seen = [row.start + len(row.tokens) for row in active]
        longest = max(row.position + 1 - first for row, first in zip(active, seen, strict=True))
        place = torch.tensor(seen, device=self.device)[:, None] + torch.arange(longest, device=self.device)
        slots = torch.tensor([row.slot for row in active], device=self.device)
        found = state.tokens[slots[:, None], place.clamp_(max=state.tokens.shape[1] - 1)].tolist()
        return [new[: row.position + 1 - first] for row, first, new in zip(active, seen, found, strict=True)]

    def _size(self, rows: int) -> int:
        if not self.graphs:
            return rows
        return next((size for size in SIZES if size >= rows), rows) if rows else 0

    def _graph(self, size: int, state: _State, mode: str) -> None:
        """Captures the step of `size` rows; the rows meanwhile all write into the spare slot."""
        if (size, mode) in self._captured:
            return
        state.slots[:size] = len(state.tokens) - 1
        state.positions[:size] = 0
        state.advance[:size] = 0
        # Trying out draws random numbers, and the ones that follow must not depend on what was captured when.
        random = torch.cuda.get_rng_state(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self._step(size, state, mode)
            torch.cuda.current_stream().wait_stream(aside)
            pool = next((known.pool() for known in self._captured.values()), None)
            with torch.cuda.graph(graph, pool=pool):
                self._step(size, state, mode)
        torch.cuda.set_rng_state(random, self.device)
        self._captured[size, mode] = graph

    def _step(self, size: int, state: _State, mode: str) -> None:
        """One token more for the first `size` rows: all of it on the device."""
        slots, positions = state.slots[:size], state.positions[:size]
        advance = state.advance[:size]
        logits = self.decoder.step(state.tokens, positions, slots, state.cache)
        if mode == "greedy":
            append_greedy(logits, state.tokens, slots, positions, advance)
        else:
            chosen = self._choose(logits, mode)
            positions += advance
            state.tokens[slots, positions] = chosen

    def _choose(self, logits: Tensor, mode: str) -> Tensor:
        """Next tokens `(B,)` for `logits (B, V)`."""
        if mode == "greedy":
            return logits.argmax(dim=-1)
        scores = logits.float() / self._temperature
        if mode == "nucleus":
            ordered, order = scores.sort(dim=-1)
            below = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self._top_p
            below[:, -1] = False
            scores = scores.masked_fill(torch.empty_like(below).scatter_(1, order, below), float("-inf"))
        # The largest of p / e with exponential e is drawn with probability p.
        chance = scores.softmax(dim=-1)
        return (chance / torch.empty_like(chance).exponential_()).argmax(dim=-1)


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Tokens up to the first end, the end included."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]
