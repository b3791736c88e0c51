"""What a block is trained for: its targets, its batches, and its error on sequences that are held out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import rqat

from . import Options

LOWEST_RATE = 0.05
"""Share of the learning rates that is left at the end: that of the authors' code."""


class Task:
    """Targets of one block; made while the block is still the original one.

    Errors are shares of what the original block adds to its inputs, over all tokens: 1 is an output of the inputs
    alone.

    Args:
        streams: hidden states around the block.
    """

    def __init__(self, streams: rqat.Streams, options: Options) -> None:
        self._streams, self._options = streams, options
        self._wanted = streams.original_outputs
        if options.target == "inputs":
            with torch.no_grad():
                self._wanted = [
                    streams.run(number, hidden).to(hidden.device) for number, hidden in enumerate(streams.inputs)
                ]
        self._weights = self._token_weights()
        places = [(number, row) for number, hidden in enumerate(streams.inputs) for row in range(len(hidden))]
        every = options.held_out
        self._held_out = places[every - 1 :: every]
        self._trained = [place for index, place in enumerate(places) if index % every != every - 1]

    def batches(self, epoch: int) -> list[tuple[int, Tensor]]:
        """Every sequence that is trained on, once: numbers of batches of the streams, and rows within them."""
        generator = torch.Generator().manual_seed(1_000_003 * self._options.seed + epoch)
        pieces = []
        for number, rows in self._by_batch(self._trained):
            rows = rows[torch.randperm(len(rows), generator=generator)]
            pieces += [(number, piece) for piece in rows.split(self._options.batch) if len(piece)]
        return [pieces[index] for index in torch.randperm(len(pieces), generator=generator).tolist()]

    def loss(self, number: int, rows: Tensor) -> Tensor:
        """The mean error `()` of some sequences of a batch, with gradients."""
        here = self._streams.inputs[number].device
        at = rows.to(here, non_blocking=True)
        out = self._streams.run(number, self._streams.inputs[number][at])
        wanted, weight = self._wanted[number][at].to(out.device), self._weights[number][at].to(out.device)
        return ((out.float() - wanted.float()).square().sum(-1) * weight).sum() / len(rows)

    @torch.no_grad()
    def error(self) -> float:
        """The mean error of the sequences that are held out; of all, where there are too few to hold out any."""
        places = self._held_out or self._trained
        total, count = torch.zeros(()), 0
        for number, rows in self._by_batch(places):
            for piece in rows.split(self._options.batch):
                if len(piece):
                    total = total.to(self._weights[number].device) + self.loss(number, piece) * len(piece)
                    count += len(piece)
        return float(total) / count

    def _by_batch(self, places: list[tuple[int, int]]) -> Iterator[tuple[int, Tensor]]:
        """The number of every batch of the streams, and which of its rows are among `places`."""
        for number in range(len(self._streams.inputs)):
            yield number, torch.tensor([row for at, row in places if at == number], dtype=torch.long)

    def share_of_rate(self, done: float) -> float:
        """Of a learning rate, when a share `done` of all steps has been made: half a cosine."""
        return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * done)) / 2

    def _token_weights(self) -> list[Tensor]:
        """What the squared error of every token counts, `(B, T)` for every batch; 0 at padding.

        The original block's inputs in place of its outputs, weighed by these, would come to 1 per sequence.
        """
        weights, added, sequences = [], torch.zeros(()), 0
        for number, (wanted, mask) in enumerate(zip(self._wanted, self._streams.masks, strict=True)):
            weight = torch.ones(wanted.shape[:2], device=wanted.device)
            if self._options.loss == "relative":
                weight = 1 / wanted.float().square().sum(-1).clamp(min=1e-12)
            if mask is not None:
                weight = weight * mask.to(weight.device)
            inputs = self._streams.inputs if self._options.target == "inputs" else self._streams.original_inputs
            change = (wanted.float() - inputs[number].float()).square().sum(-1)
            added = added.to(weight.device) + (change * weight).sum()
            sequences += len(wanted)
            weights.append(weight)
        whole = (added / sequences).clamp(min=1e-12)
        return [weight / whole for weight in weights]
