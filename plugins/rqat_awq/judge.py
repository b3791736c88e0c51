"""What a block puts out while layers of it are tried on their grids, against what the original block does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

import rqat


class Judge:
    """Compares outputs of a block, of the inputs that it gets in the quantized model.

    Args:
        block: as it is before quantization, with streams.
        sequences: so many are looked at, evenly spread over the calibration data.
    """

    def __init__(self, block: rqat.Block, sequences: int) -> None:
        assert block.streams is not None
        self._block, self._streams = block, block.streams
        places = [(number, row) for number, hidden in enumerate(self._streams.inputs) for row in range(len(hidden))]
        every = max(1, len(places) // sequences)
        chosen = places[::every][:sequences]
        self._batches = []
        for number in dict.fromkeys(number for number, _ in chosen):
            rows = torch.tensor([row for at, row in chosen if at == number])
            hidden, mask = self._streams.inputs[number], self._streams.masks[number]
            inputs = hidden[rows.to(hidden.device)]
            wanted = self._streams.run(number, inputs).float()
            # A share of what a token's output is: the few tokens with very large hidden states count as any other.
            weight = 1 / wanted.square().sum(-1).clamp(min=1e-12)
            if mask is not None:
                weight = weight * mask[rows.to(mask.device)].to(weight.device)
            self._batches.append((number, inputs, wanted, weight))

    def error(self) -> float:
        """The share of the squared outputs that the block's weights, as they are now, move; summed over tokens."""
        total = torch.zeros((), dtype=torch.float64)
        for number, inputs, wanted, weight in self._batches:
            moved = (self._streams.run(number, inputs).float() - wanted).square().sum(-1)
            total = total.to(moved.device) + (moved * weight).sum(dtype=torch.float64)
        return float(total)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Gives layers other weights, by their names inside the block."""
        for name, weight in weights.items():
            self._block.linear(name).weight.copy_(weight)

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Whatever is put is taken back at the end."""
        before = {name: self._block.linear(name).weight.detach().clone() for name in self._block.names()}
        try:
            yield
        finally:
            self.put(before)
