"""The suite of rewards."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import get_args

from ..contracts import Completion, Reward, Row, Verdict
from .suite import Suite, expect


class RewardSuite(Suite):
    """A finite number for whatever a model may write, the same every time, and nothing changed on the way."""

    kind = "reward"

    def completions(self) -> Iterator[tuple[Completion, Row]]:
        """What is scored; a subclass may add its own, and rows with the fields that its reward reads."""
        row: Row = {"prompt": "1+1=", "completion": "2", "answer": "2"}
        for text in ("It is \\boxed{2}.", "2", "", "I think, " * 50, "<think>one and one", "\n\u2028 \U0001f600"):
            tokens = tuple(range(len(text)))
            for ended in (True, False):
                logprobs = tuple(-0.5 for _ in tokens)
                yield Completion(text, tokens, ended, limit=1024, unclosed_think="<think>" in text), row
                yield Completion(text, tokens, ended, limit=1024, looping=not ended, logprobs=logprobs), row

    def test_it_is_a_finite_number(self) -> None:
        """For every completion and verdict, also without a task and for a completion of no tokens."""
        for completion, row, verdict in self._cases():
            score = self.make().score(completion, row, verdict)
            number = isinstance(score, (int, float)) and not isinstance(score, bool)
            expect(number, f"score is {score!r}, a {type(score).__name__}; return a float")
            expect(math.isfinite(score), f"score of {completion.text[:40]!r} is {score}")

    def test_the_same_completion_gives_the_same_score(self) -> None:
        """Also from the same object a second time: no memory, no chance."""
        made: Reward = self.make()
        for case in self._cases():
            scores = {made.score(*case), made.score(*case), self.make().score(*case)}
            expect(len(scores) == 1, f"three scores of {case[0].text[:40]!r} differ: {sorted(scores)}")

    def test_nothing_it_is_given_changes(self) -> None:
        """The row is shared with other rewards."""
        for completion, row, verdict in self._cases():
            before = copy.deepcopy(row)
            self.make().score(completion, row, verdict)
            expect(row == before, f"score changed the row it was given: {before} to {row}")

    def _cases(self) -> Iterator[tuple[Completion, Row, Verdict | None]]:
        for completion, row in self.completions():
            for verdict in (None, *get_args(Verdict)):
                yield completion, row, verdict
