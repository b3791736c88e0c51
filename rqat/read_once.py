"""Sources whose rows are read once while a plan is looked at, however many of its steps ask for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .cards import Card, Kind
from .contracts import Row, Source, Split
from .registry import Registry
from .stage import Use


class LookedAt:
    """Builds what plugins offer, for a look before any work; see `rqat.stage.Parts`.

    Sources of the same name and options are one, and remember what was read of them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._sources: dict[str, ReadOnce] = {}

    def make(self, use: Use) -> Any:
        """The part that a plan names."""
        if use.card.kind != "source":
            return self._registry.make(use.card, use.options)
        key = json.dumps([use.card.full_name, use.options.model_dump(mode="json")], sort_keys=True)
        if key not in self._sources:
            self._sources[key] = ReadOnce(self._registry.make(use.card, use.options))
        return self._sources[key]

    def known(self, kind: Kind) -> list[Card]:
        """Every part of a kind that can be named."""
        return self._registry.cards(kind)


class ReadOnce:
    """A source that gives the rows it has given before, and reads on behind them; in all else the source itself."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read: dict[tuple[Split, int], _Rows] = {}

    def rows(self, split: Split, seed: int) -> Iterator[Row]:
        """See `rqat.Source`."""
        if (split, seed) not in self._read:
            self._read[split, seed] = _Rows(self._source.rows(split, seed))
        return self._read[split, seed].all()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class _Rows:
    """What was read, what is still to be read, and what stood in the way."""

    def __init__(self, unread: Iterator[Row]) -> None:
        self._unread = iter(unread)
        self._read: list[Row] = []
        self._broken: Exception | None = None

    def all(self) -> Iterator[Row]:
        """Every row anew, so that nobody changes another's."""
        at = 0
        while self._reaches(at):
            yield self._read[at].copy()
            at += 1

    def _reaches(self, index: int) -> bool:
        """Whether there is a row at `index`, which is read if it has not been.

        Raises:
            Exception: as the source did, to everybody who reads so far.
        """
        if index < len(self._read):
            return True
        if self._broken is not None:
            raise self._broken
        try:
            self._read.append(next(self._unread))
        except StopIteration:
            return False
        except Exception as error:
            self._broken = error
            raise
        return True
