"""Rewards for objectives that learn from their own completions: a right answer, few tokens, a boxed answer.

The shortest plugin that offers rewards, and the one to read first. A recipe weights them:
`rewards: {correct: 1.0, length: -0.1}`.
"""

from __future__ import annotations

import rqat


class Correct(rqat.Reward):
    """1 for a completion that the task's grader calls correct, else 0."""

    def score(self, completion: rqat.Completion, row: rqat.Row, verdict: rqat.Verdict | None) -> float:
        """See `rqat.Reward`."""
        return float(verdict == "correct")


class Length(rqat.Reward):
    """Tokens of the completion as a share of those it may have; to be weighted with less than 0."""

    def score(self, completion: rqat.Completion, row: rqat.Row, verdict: rqat.Verdict | None) -> float:
        """See `rqat.Reward`."""
        return len(completion.tokens) / completion.limit


class Boxed(rqat.Reward):
    """1 for a completion that ended by itself with an answer in a box, right or wrong, else 0."""

    def score(self, completion: rqat.Completion, row: rqat.Row, verdict: rqat.Verdict | None) -> float:
        """See `rqat.Reward`."""
        from rqat.evals.grade import boxed

        return float(completion.ended and boxed(completion.text) is not None)


@rqat.hookimpl
def register_rewards(register: rqat.RegisterReward) -> None:
    register("correct", load=":Correct", summary="1 for a correct completion, else 0")
    register("length", load=":Length", summary="share of the tokens allowed that a completion takes")
    register("boxed", load=":Boxed", summary="1 for a completion that ends with an answer in a box")
