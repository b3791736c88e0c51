"""Writes completions with a `Decoder`: rows that come and go, in steps that the device makes without the host.

Every completion has a slot of the cache. The device chooses tokens, and finds out by itself which rows have ended
(`steps.py`). The host hands it several steps at a time, one piece ahead of what it has seen: while the device works on
them, it looks at which rows had ended before, takes their tokens, and gives their slots to prompts that wait. Equal
prompts that join together are read once.

What is drawn for a row depends on its seed and its positions: not on the rows beside it, nor on when it joined.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .decoder import Decoder
from .sampling import seed_of
from .steps import FACTS, SIZES, Mode, State, Steps
from .transfer import Fetch, send
from .writer import REPORT_SECONDS, Written, limits_of

if TYPE_CHECKING:
    import transformers

PIECE = 8
"""Steps between two looks of the host, with graphs. An ended row is carried along for at most two pieces."""

PREFILL_TOKENS = 16384
"""Prompt tokens that are read at once, as if all prompts were as long as the longest."""

ROUNDING = 256
"""A cache's positions are a multiple of this, so that a batch of slightly longer prompts fits into the one there is."""

CACHE_SHARE = 0.85
"""Of the free memory, how much the cache may take."""

JOIN_SHARE = 8
"""Prompts that wait join when this part of the slots is free, so that few of them are not read by themselves."""


class Engine:
    """A `Writer` with a dense decoder, on packed weights or on plain ones.

    The random numbers of a call come from one number that it draws from torch's global generator for the CPU.

    Args:
        model: of one of rqat's families, in eval mode, on its device. Its weights are read where they are, also when
            they change in place.
        graphs: capture steps as CUDA graphs; None: on CUDA.
        rows: most completions that are written at the same time.
        cache_share: of the free memory, how much the cache may take.

    Raises:
        ModelError: the model cannot be decoded here, see `Decoder`.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        *,
        graphs: bool | None = None,
        rows: int = SIZES[-1],
        cache_share: float = CACHE_SHARE,
    ) -> None:
        self.decoder = Decoder(model)
        self.device = self.decoder.embeddings.device
        self.steps = Steps(self.decoder, graphs=self.device.type == "cuda" if graphs is None else graphs)
        self.rows = min(rows, SIZES[-1])
        self.cache_share = cache_share
        self._state: State | None = None

    @property
    def name(self) -> str:
        """What results call it: "packed", or "engine" on plain weights."""
        return "packed" if self.decoder.packed else "engine"

    @property
    def at_once(self) -> int:
        """See `Writer`: so many that waiting for the last of them counts little."""
        return 4 * self.rows

    @torch.inference_mode()
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
        tell: Callable[[int, int], None] | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Written]:
        """See `Writer`.

        Raises:
            torch.OutOfMemoryError: there is no room for the cache of a single row.
        """
        mode = Mode("greedy" if temperature <= 0 else "nucleus" if top_p < 1 else "sample", logprobs)
        if seeds is None:
            seed = 0 if mode.choice == "greedy" else int(torch.randint(2**62, ()))
            seeds = [seed_of(seed, index) for index in range(len(prompts))]
        most = limits_of(prompts, max_new_tokens)
        longest = max((len(prompt) + new for prompt, new in zip(prompts, most, strict=True)), default=0)
        state = self._room(min(len(prompts), self.rows), longest)
        self.steps.set(temperature, top_p, ends)
        return _Writing(self, state, mode, seeds, prompts, most, tell, stream).run()

    def release(self) -> None:
        """Gives the cache's memory back; the next completions take it anew."""
        self.steps.captured.clear()
        self._state = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _room(self, slots: int, positions: int) -> State:
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
            room = self.cache_share * torch.cuda.mem_get_info(self.device)[0]
            slots = max(1, min(slots, int(room / self.decoder.cache_bytes(positions)) - 1))
        whole = torch.zeros(slots + 1, positions, dtype=torch.long, device=self.device)
        told = torch.zeros(slots + 1, dtype=torch.int32, device=self.device)
        rows = torch.zeros(FACTS, SIZES[-1], dtype=torch.long, device=self.device)
        cache = self.decoder.make_cache(slots + 1, positions)
        self._state = State(cache, whole, torch.zeros(whole.shape, device=self.device), told, rows)
        return self._state


@dataclass(eq=False)
class _Row:
    """A completion being written: which prompt, in which slot, and what the host knows of it.

    Attributes:
        start: tokens of its prompt, and the position of the first new one.
        left: steps it may still take.
        since: number of the first look that knows of it.
        position: of the newest token that was seen.
        streamed: tokens that were streamed.
    """

    index: int
    slot: int
    start: int
    left: int
    since: int
    position: int
    ended: bool = False
    streamed: int = 0


class _Harvest(NamedTuple):
    """Tokens of rows that have ended, on their way to the host."""

    rows: list[_Row]
    tokens: Fetch
    logprobs: Fetch | None


class _Writing:
    """One call of `Engine.write`."""

    def __init__(
        self,
        engine: Engine,
        state: State,
        mode: Mode,
        seeds: Sequence[int],
        prompts: Sequence[Sequence[int]],
        most: Sequence[int],
        tell: Callable[[int, int], None] | None,
        stream: Callable[[list[int]], None] | None,
    ) -> None:
        self.steps, self.decoder, self.state, self.mode, self.seeds = engine.steps, engine.decoder, state, mode, seeds
        self.prompts, self.most, self.tell, self.stream = prompts, most, tell, stream
        self.finished = [Written([], [] if mode.logprobs else None) for _ in prompts]
        self.waiting = deque(index for index, limit in enumerate(most) if limit > 0)
        self.slots = min(state.spare, engine.rows)
        self.free = deque(range(self.slots))
        # In the order of the device's rows; some may have ended.
        self.placed: list[_Row] = []
        self.looks: deque[tuple[int, Fetch]] = deque()
        self.looked = 0
        self.harvests: deque[_Harvest] = deque()
        self.done, self.tokens, self.told_at = 0, 0, time.perf_counter()

    def run(self) -> list[Written]:
        """Writes everything."""
        piece, ahead = (PIECE, 1) if self.steps.graphs else (1, 0)
        while self.waiting or self.placed:
            if self.waiting and (not self.placed or JOIN_SHARE * len(self.free) >= self.slots):
                self._join()
            count = min(piece, max(row.left for row in self.placed if not row.ended))
            self.steps.run(self.state, self.steps.size(len(self.placed)), count, self.mode)
            for row in self.placed:
                row.left -= min(count, row.left)
            self.looks.append((self.looked, Fetch(self.state.told)))
            self.looked += 1
            while len(self.looks) > (ahead if count else 0):
                self._see(*self.looks.popleft())
        while self.harvests:
            self._collect(self.harvests.popleft())
        return self.finished

    def _see(self, number: int, look: Fetch) -> None:
        """What a look shows: how far rows are, and which have ended."""
        told = look.get()
        ended = []
        for row in self.placed:
            if row.ended or number < row.since:
                continue
            row.position = abs(told[row.slot])
            if self.stream:
                row.streamed = self._stream(row, self.stream)
            if told[row.slot] < 0:
                row.ended = True
                ended.append(row)
        if ended:
            self._harvest(ended)
            alive = [place for place, row in enumerate(self.placed) if not row.ended]
            # Rows that have ended cost little; they leave when fewer rows make a smaller step.
            if self.steps.size(len(alive)) < self.steps.size(len(self.placed)):
                self._place(alive, [], [])
        while self.harvests and self.harvests[0].tokens.arrived():
            self._collect(self.harvests.popleft())
        now = time.perf_counter()
        if self.tell and now - self.told_at >= REPORT_SECONDS:
            self.told_at = now
            living = sum(row.position - row.start + 1 for row in self.placed if not row.ended)
            self.tell(self.done, self.tokens + living)

    def _stream(self, row: _Row, stream: Callable[[list[int]], None]) -> int:
        """Hands on the new tokens of a row; how many there are now."""
        fresh = self.state.tokens[row.slot, row.start + row.streamed : row.position + 1].tolist()
        if fresh:
            stream(fresh)
        return row.streamed + len(fresh)

    def _harvest(self, rows: list[_Row]) -> None:
        """Sends for the tokens of rows that have ended, and frees their slots."""
        starts = send([[row.slot, row.start] for row in rows], self.steps.device)
        counts = [row.position + 1 - row.start for row in rows]
        places = starts[:, 1:] + torch.arange(max(counts), device=starts.device)
        where = starts[:, :1], places.clamp_(max=self.state.tokens.shape[1] - 1)
        likely = Fetch(self.state.logprobs[where]) if self.mode.logprobs else None
        self.harvests.append(_Harvest(rows, Fetch(self.state.tokens[where]), likely))
        self.free.extend(row.slot for row in rows)
        self.done += len(rows)
        self.tokens += sum(counts)

    def _collect(self, harvest: _Harvest) -> None:
        """Takes what was sent for."""
        tokens = harvest.tokens.get()
        likely = None if harvest.logprobs is None else harvest.logprobs.get()
        for place, row in enumerate(harvest.rows):
            count = row.position + 1 - row.start
            known = None if likely is None else likely[place][:count]
            self.finished[row.index] = Written(tokens[place][:count], known)

    def _place(self, alive: list[int], rows: list[_Row], facts: list[Tensor]) -> None:
        """Keeps the rows at some places of the device, and adds others behind them."""
        self.steps.place(self.state, alive, facts, self.mode)
        self.placed = [self.placed[place] for place in alive] + rows

    def _join(self) -> None:
        """Gives free slots to prompts that wait, reads those prompts and chooses their first tokens."""
        joined: list[_Row] = []
        while self.waiting and self.free:
            index = self.waiting.popleft()
            start = len(self.prompts[index])
            joined.append(_Row(index, self.free.popleft(), start, self.most[index] - 1, self.looked, start))
        # The longest first, so that those read together are of similar length.
        joined.sort(key=lambda row: (row.start, tuple(self.prompts[row.index])), reverse=True)
        facts = [self._read(rows, leads) for rows, leads in self._reads(joined)]
        self._place([place for place, row in enumerate(self.placed) if not row.ended], joined, facts)

    def _reads(self, rows: Sequence[_Row]) -> Iterator[tuple[list[_Row], dict[tuple[int, ...], _Row]]]:
        """Rows, the longest first, cut into those that are read together, and of those one row for every prompt."""
        some: list[_Row] = []
        leads: dict[tuple[int, ...], _Row] = {}
        for row in rows:
            prompt = tuple(self.prompts[row.index])
            if leads and prompt not in leads and len(next(iter(leads))) * (len(leads) + 1) > PREFILL_TOKENS:
                yield some, leads
                some, leads = [], {}
            leads.setdefault(prompt, row)
            some.append(row)
        if some:
            yield some, leads

    def _read(self, rows: list[_Row], leads: dict[tuple[int, ...], _Row]) -> Tensor:
        """Reads prompts, each of them once, and chooses the first token of every row; their facts `(FACTS, n)`."""
        device, cache = self.steps.device, self.state.cache
        logits = self.decoder.prefill(list(leads), [row.slot for row in leads.values()], cache)
        if len(rows) > len(leads):
            numbers = {prompt: number for number, prompt in enumerate(leads)}
            first = [(row, tuple(self.prompts[row.index])) for row in rows]
            logits = logits[send([numbers[prompt] for _, prompt in first], device)]
            pairs = [[row.slot, leads[prompt].slot] for row, prompt in first if leads[prompt] is not row]
            into, out_of = send(pairs, device).unbind(1)
            longest = max(map(len, leads))
            for layer in (*cache.keys, *cache.values):
                layer[into, :, :longest] = layer[out_of, :, :longest]
        known = [
            (row.slot, row.start - 1, 1, row.start + self.most[row.index] - 1, self.seeds[row.index]) for row in rows
        ]
        # An even number, so that pointers are always aligned, as the compiled kernel takes them to be.
        even = known + known[:1] * (len(known) % 2)
        facts = send(list(zip(*even, strict=True)), device)[:, : len(known)]
        self.steps.choose(logits, self.state, facts.unbind(), self.mode)
        return facts
