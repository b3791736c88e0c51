"""The suite of sources: conversations are rows like any other, and one in two splits is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import rqat
from rqat.cards import Card
from rqat.registry import Registry
from rqat.testing import SourceSuite


class Talks(rqat.Source):
    """Conversations; every split has its own unless told to share."""

    share = False

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        for number in range(3):
            asked = f"{'' if self.share else split} {number}"
            yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "yes"}]}


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> SourceSuite:
    monkeypatch.setattr(Registry, "load_class", lambda self, card: Talks)
    registry = Registry.discover()
    card = Card("source", "talks", load=":Talks", options=rqat.Options, module=__name__, owner="test", version="0")
    registry._offer(card)
    return type("Examined", (SourceSuite,), {"name": "talks", "registry": registry})()


def test_conversations_pass(suite: SourceSuite) -> None:
    suite.test_rows_are_usable()
    suite.test_splits_share_no_row()


def test_a_conversation_in_two_splits_is_found(suite: SourceSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Talks, "share", True)
    with pytest.raises(AssertionError, match="in 'train' and 'validation'"):
        suite.test_splits_share_no_row()
