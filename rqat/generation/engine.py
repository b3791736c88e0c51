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
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from rqat_kernels.decode import append_greedy

from .decoder import Cache, Decoder
from .sampling import until_end
from .writer import REPORT_SECONDS, Written, limits_of

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


class Mode(NamedTuple):
    """How the next token is chosen, and whether it is said how likely it was: what a captured step depends on."""

    choice: Literal["greedy", "sample", "nucleus"]
    logprobs: bool = False


@dataclass
class _Row:
    """A completion being written: which prompt, in which slot; its newest token stands at `position`."""

    index: int
    slot: int
    start: int
    most: int
    position: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _State:
    """What steps read and write on the device; the last slot belongs to the rows that only fill up a size.

    Attributes:
        tokens: `(S, P)` of every slot, prompts and completions.
        logprobs: `(S, P)` float32, of the tokens that were chosen, where asked for.
        slots, positions, advance: `(B,)`, of every row; `advance` is 0 for rows that only fill up.
    """

    cache: Cache
    tokens: Tensor
    logprobs: Tensor
    slots: Tensor
    positions: Tensor
    advance: Tensor


class Engine:
    """A `Writer` with a dense decoder, on packed weights or on plain ones.

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
        self._captured: dict[tuple[int, Mode], torch.cuda.CUDAGraph] = {}
        self._temperature = torch.ones((), device=self.device)
        self._top_p = torch.ones((), device=self.device)

    @property
    def name(self) -> str:
        """What results call it: "packed", or "engine" on plain weights."""
        return "packed" if self.decoder.packed else "engine"

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        ends: frozenset[int] = frozenset(),
        logprobs: bool = False,
        tell: Callable[[int, int], None] | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Written]:
        """See `Writer`.

        Raises:
            torch.OutOfMemoryError: there is no room for the cache of a single row.
        """
        mode = Mode("greedy" if temperature <= 0 else "nucleus" if top_p < 1 else "sample", logprobs)
        if temperature > 0:
            self._temperature.fill_(temperature)
            self._top_p.fill_(top_p)
        piece = PIECE if self.graphs else 1
        most = limits_of(prompts, max_new_tokens)
        longest = max((len(prompt) + new for prompt, new in zip(prompts, most, strict=True)), default=0)
        state = self._room(min(len(prompts), self.rows), longest + piece)
        free = list(range(len(state.tokens) - 1))[: self.rows]
        slots = len(free)
        waiting = deque(range(len(prompts)))
        finished = [Written([], [] if logprobs else None) for _ in prompts]
        active: list[_Row] = []
        count, done, told = 0, 0, time.perf_counter()
        while waiting or active:
            if waiting and (not active or 8 * len(free) >= slots):
                active += self._join(prompts, most, waiting, free, state, mode)
                self._place(active, state, mode)
            left = max(row.start + row.most - 1 - row.position for row in active)
            self._advance(active, min(piece, left), state, mode)
            staying = []
            for row, new, likely in zip(active, *self._read(active, state, mode), strict=True):
                fresh = until_end(new[: row.most - len(row.tokens)], ends)
                row.tokens += fresh
                row.logprobs += likely[: len(fresh)]
                count += len(fresh)
                if stream:
                    stream(fresh)
                if len(row.tokens) == row.most or row.tokens[-1] in ends:
                    finished[row.index] = Written(row.tokens, row.logprobs if logprobs else None)
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
        likely = torch.zeros(tokens.shape, device=self.device)
        self._state = _State(self.decoder.make_cache(slots + 1, positions), tokens, likely, *numbers)
        return self._state

    def _join(
        self,
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        waiting: deque[int],
        free: list[int],
        state: _State,
        mode: Mode,
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
            self._choose(logits, state, slots, lengths, mode)
            joined += some
        return joined

    def _place(self, active: Sequence[_Row], state: _State, mode: Mode) -> None:
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

    def _advance(self, active: Sequence[_Row], steps: int, state: _State, mode: Mode) -> None:
        """Computes the next tokens of all rows, `steps` times."""
        size = self._size(len(active))
        for _ in range(steps):
            if self.graphs:
                self._captured[size, mode].replay()
            else:
                self._step(size, state, mode)
        for row in active:
            row.position += steps

    def _read(self, active: Sequence[_Row], state: _State, mode: Mode) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens that every row has been given since it was last looked at, and their log-probabilities if any."""
        seen = [row.start + len(row.tokens) for row in active]
        longest = max(row.position + 1 - first for row, first in zip(active, seen, strict=True))
        place = torch.tensor(seen, device=self.device)[:, None] + torch.arange(longest, device=self.device)
        slots = torch.tensor([row.slot for row in active], device=self.device)
        where = slots[:, None], place.clamp_(max=state.tokens.shape[1] - 1)
        counts = [row.position + 1 - first for row, first in zip(active, seen, strict=True)]
        tokens = [new[:count] for new, count in zip(state.tokens[where].tolist(), counts, strict=True)]
        if not mode.logprobs:
            return tokens, [[] for _ in active]
        return tokens, [new[:count] for new, count in zip(state.logprobs[where].tolist(), counts, strict=True)]

    def _size(self, rows: int) -> int:
        if not self.graphs:
            return rows
        return next((size for size in SIZES if size >= rows), rows) if rows else 0

    def _graph(self, size: int, state: _State, mode: Mode) -> None:
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

    def _step(self, size: int, state: _State, mode: Mode) -> None:
        """One token more for the first `size` rows: all of it on the device."""
        slots, positions = state.slots[:size], state.positions[:size]
        advance = state.advance[:size]
        logits = self.decoder.step(state.tokens, positions, slots, state.cache)
        if mode == Mode("greedy"):
            append_greedy(logits, state.tokens, slots, positions, advance)
        else:
            positions += advance
            self._choose(logits, state, slots, positions, mode)

    def _choose(self, logits: Tensor, state: _State, slots: Tensor, positions: Tensor, mode: Mode) -> None:
        """Writes the next tokens for `logits (B, V)` down at `positions (B,)` of `slots (B,)`."""
        scores = logits if mode.choice == "greedy" else logits.float() / self._temperature
        chosen = draw(self._nucleus(scores) if mode.choice == "nucleus" else scores, mode)
        state.tokens[slots, positions] = chosen
        if mode.logprobs:
            likely = scores.float().log_softmax(dim=-1).gather(-1, chosen[:, None]).squeeze(-1)
            state.logprobs[slots, positions] = likely

    def _nucleus(self, scores: Tensor) -> Tensor:
        """Scores `(B, V)` without those that `top_p` leaves out."""
        ordered, order = scores.sort(dim=-1)
        below = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self._top_p
        below[:, -1] = False
        return scores.masked_fill(torch.empty_like(below).scatter_(1, order, below), float("-inf"))


def draw(scores: Tensor, mode: Mode) -> Tensor:
    """Tokens `(B,)` for `scores (B, V)`."""
    if mode.choice == "greedy":
        return scores.argmax(dim=-1)
    # The largest of p / e with exponential e is drawn with probability p.
    chance = scores.softmax(dim=-1)
    return (chance / torch.empty_like(chance).exponential_()).argmax(dim=-1)
