"""What all suites share, and how they fail."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from ..registry import Card, Kind, Registry


def expect(condition: object, message: str) -> None:
    """Fails with `message` unless `condition` holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


class Suite:
    """What all suites share.

    Class attributes, for subclasses to set:
        name: the registered name.
        options: options other than the defaults.
        registry: where the name is looked up; None is everything that is installed.
    """

    kind: ClassVar[Kind]
    name: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    registry: ClassVar[Registry | None] = None

    @property
    def card(self) -> Card:
        """The card under test."""
        return self._registry.card(self.kind, self.name)

    def make(self) -> Any:
        """The part under test, built as the host builds it."""
        return self._registry.make(self.card, self._registry.options(self.card, self.options))

    def test_the_card_says_what_it_is(self) -> None:
        """A one-line summary for `rqat plugins`, and a class of the right kind behind `load`."""
        expect(self.card.summary and "\n" not in self.card.summary, "summary= is missing or more than one line")
        self._registry.load_class(self.card)

    @property
    def _registry(self) -> Registry:
        return self.registry or _installed()


@lru_cache(maxsize=1)
def _installed() -> Registry:
    return Registry.discover()
