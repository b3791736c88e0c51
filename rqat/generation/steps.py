"""The device's side of the engine: what is known of rows there, and steps that compute the next token of each.

A step, from the tokens to the next tokens and to which rows have ended, needs nothing from the host. How many rows it
is for is rounded up to a few sizes, and for each size it is captured once as a CUDA graph; elsewhere it is computed
operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rqat_kernels.decode import append

from .decoder import Cache, Decoder
from .transfer import send

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
"""Numbers of rows for which steps are captured."""

STOPS = 32
"""End tokens there is room for; with more, steps are captured anew."""

FACTS = 5
"""What is known of a row: its slot, the position of its newest token, whether it goes on, the position of the last
token it may have, and the seed of its random numbers."""


class Mode(NamedTuple):
    """How the next token is chosen, and whether it is said how likely it was: what a captured step depends on."""

    choice: Literal["greedy", "sample", "nucleus"]
    logprobs: bool = False


@dataclass
class State:
    """What steps read and write on the device; the last slot belongs to the rows that only fill up a size.

    Attributes:
        tokens: `(S, P)` of every slot, completions alone.
        logprobs: `(S, P)` float32, of the tokens that were chosen, where asked for.
        told: `(S,)` int32: position of the newest token, less than 0 where the row has ended; see
            `rqat_kernels.decode.append`.
        rows: `(FACTS, B)` int64.
    """

    cache: Cache
    tokens: Tensor
    logprobs: Tensor
    told: Tensor
    rows: Tensor

    @property
    def spare(self) -> int:
        """The slot that belongs to nobody."""
        return len(self.tokens) - 1


class Steps:
    """Computes steps over a state.

    Args:
        graphs: capture steps as CUDA graphs.
    """

    def __init__(self, decoder: Decoder, *, graphs: bool) -> None:
        self.decoder, self.graphs = decoder, graphs
        self.device = decoder.embeddings.device
        self.captured: dict[tuple[int, Mode], torch.cuda.CUDAGraph] = {}
        self._temperature = torch.ones(1, device=self.device)
        self._top_p = torch.ones(1, device=self.device)
        self._stops = torch.full((STOPS,), -1, device=self.device)

    def set(self, temperature: float, top_p: float, ends: frozenset[int]) -> None:
        """Settings of the steps that follow."""
        self._temperature.fill_(temperature if temperature > 0 else 1.0)
        self._top_p.fill_(top_p)
        if len(ends) > len(self._stops):
            self.captured.clear()
            self._stops = self._stops.new_empty(2 * len(ends))
        self._stops.copy_(send([*ends, *[-1] * (len(self._stops) - len(ends))], self.device))

    def size(self, rows: int) -> int:
        """For how many rows a step of so many is computed."""
        return next((size for size in SIZES if size >= rows), rows) if self.graphs and rows else rows

    def place(self, state: State, kept: Sequence[int], joined: Sequence[Tensor], mode: Mode) -> None:
        """Makes up the rows of the next steps: some of those there are, those that join, others that fill up.

        Args:
            kept: places of those that stay, in order.
            joined: `(FACTS, n)` each.
        """
        there = len(kept) + sum(part.shape[1] for part in joined)
        size = self.size(there)
        if not size:
            return
        if self.graphs:
            self._capture(size, state, mode)
        fill = idle(size - there, state)
        state.rows[:, :size] = torch.cat([state.rows[:, send(list(kept), self.device)], *joined, fill], dim=1)

    def run(self, state: State, size: int, steps: int, mode: Mode) -> None:
        """Computes the next tokens of the first `size` rows, `steps` times."""
        for _ in range(steps):
            if self.graphs:
                self.captured[size, mode].replay()
            else:
                self.step(size, state, mode)

    def step(self, size: int, state: State, mode: Mode) -> None:
        """One token more for the first `size` rows."""
        slots, positions, *_ = rows = state.rows[:, :size].unbind()
        self.choose(self.decoder.step(state.tokens, positions, slots, state.cache), state, rows, mode)

    def choose(self, logits: Tensor, state: State, rows: Sequence[Tensor], mode: Mode) -> None:
        """Writes down the tokens behind the positions of `rows`, FACTS times `(B,)`, by their logits `(B, V)`."""
        slots, positions, live, limits, seeds = rows
        append(
            logits,
            None if mode.choice == "greedy" else self._temperature,
            self.floor(logits) if mode.choice == "nucleus" else None,
            seeds, state.tokens, state.logprobs if mode.logprobs else None, state.told,
            slots, positions, live, limits, self._stops,
        )  # fmt: skip

    def floor(self, logits: Tensor) -> Tensor:
        """The least logit `(B,)` that `top_p` leaves: the fewest tokens that together have that share."""
        ordered = logits.float().sort(dim=-1).values
        below = (ordered / self._temperature).softmax(dim=-1).cumsum(dim=-1) <= 1 - self._top_p
        first = below[:, :-1].sum(dim=-1, keepdim=True)
        return ordered.gather(1, first).squeeze(1)

    def _capture(self, size: int, state: State, mode: Mode) -> None:
        """Captures the step of `size` rows; meanwhile all of them only fill up."""
        if (size, mode) in self.captured:
            return
        before = state.rows.clone()
        state.rows[:, :size] = idle(size, state)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            aside = _aside(self.device)
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self.step(size, state, mode)
            torch.cuda.current_stream().wait_stream(aside)
            pool = next((known.pool() for known in self.captured.values()), None)
            with torch.cuda.graph(graph, pool=pool):
                self.step(size, state, mode)
        state.rows.copy_(before)
        self.captured[size, mode] = graph


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One for all that is captured on a device: on each that it meets, cuBLAS keeps 32 MiB for good (on Hopper)."""
    return torch.cuda.Stream(device)


def idle(count: int, state: State) -> Tensor:
    """Facts `(FACTS, count)` of rows that only fill up."""
    rows = state.rows.new_zeros(FACTS, count)
    rows[0] = state.spare
    return rows
