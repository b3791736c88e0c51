"""The suite of rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, get_args

from ..contracts import Completion, Reward, Row, Verdict
from .suite import Suite, expect


class RewardSuite(Suite):
    """A finite number for every completion, the same each time.

    Class attributes:
        row: a training row, for rewards that look at one.
    """

    kind = "reward"
    row: ClassVar[Row] = {"prompt": "1+1=", "completion": "2", "answer": "2", "place": "row 1 of the training data"}

    def completions(self) -> Iterator[Completion]:
        """Completions of every kind: ended, cut off, empty, in a loop, with thinking that was never closed."""
        yield Completion("\\boxed{2}", tuple(range(5, 14)), ended=True, limit=64)
        yield Completion("<think>so</think>2", tuple(range(5, 30)), ended=True, limit=64)
        yield Completion("<think>so", tuple(range(5, 69)), ended=False, limit=64, unclosed_think=True)
        yield Completion("", (1,), ended=True, limit=64)
        yield Completion("", (), ended=False, limit=1)
        yield Completion("no " * 32, (7, 8) * 32, ended=False, limit=64, looping=True)

    def test_scores_are_finite_numbers(self) -> None:
        """Whatever the completion and its verdict are."""
        made: Reward = self.make()
        for completion in self.completions():
            for verdict in (*get_args(Verdict), None):
                score = made.score(completion, self.row, verdict)
                finite = isinstance(score, int | float) and math.isfinite(score)
                expect(finite, f"{score!r} for {completion.text[:30]!r}, graded {verdict}: not a finite number")

    def test_the_same_completion_scores_the_same(self) -> None:
        """Also by a second object, and without changing the row."""
        before = dict(self.row)
        first: Reward = self.make()
        second: Reward = self.make()
        for completion in self.completions():
            for verdict in get_args(Verdict):
                scores = [made.score(completion, self.row, verdict) for made in (first, first, second)]
                expect(len(set(scores)) == 1, f"{completion.text[:30]!r} scores {scores}")
        expect(self.row == before, "the row was changed")
