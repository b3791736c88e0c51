"""A mixture of other sources, e.g. 80 % reasoning and 20 % plain text for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rqat

from . import MixOptions


class Mix(rqat.Source):
    """Interleaves its parts so that every prefix holds them in proportion to their weights, to within one row each."""

    options: MixOptions

    def combine(self, parts: Sequence[rqat.Source]) -> None:
        """See `rqat.Source`."""
        for part in self.options.parts:
            if not part.weight > 0:
                raise rqat.DataError(
                    f"mix: the weight of '{part.source}' is {part.weight}.", hint="Weights are greater than 0."
                )
        self._parts = list(parts)

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`. All parts get the same seed, so that a mixture of one part is that part."""
        streams = [part.rows(split, seed) for part in self._parts]
        return self._interleave(streams, split, seed)

    def _interleave(self, streams: list[Iterator[rqat.Row]], split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        weights = [part.weight for part in self.options.parts]
        taken = [0] * len(streams)
        finished: set[int] = set()
        while True:
            index = min(range(len(streams)), key=lambda i: ((taken[i] + 1) / weights[i], i))
            row = next(streams[index], None)
            if row is None:
                finished.add(index)
                if self.options.exhausted == "stop" or len(finished) == len(streams):
                    return
                streams[index] = self._parts[index].rows(split, seed)
                row = next(streams[index])
            taken[index] += 1
            yield row
