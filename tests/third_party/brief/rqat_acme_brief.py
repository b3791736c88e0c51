"""A reward that falls once a completion is longer than a target: with plain GRPO, whose rewards it joins.

Linear beyond the target, so that two right completions of unequal length have unequal advantages, and nothing pulls
below the target (compare arXiv 2503.04697, which draws towards a length).
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

import rqat


class Options(rqat.Options):
    """Options of `acme-brief`.

    Attributes:
        target: tokens that cost nothing.
        only_right: leave wrong completions alone, which may have to think longer.
    """

    target: int = Field(default=64, ge=0)
    only_right: bool = True

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        if self.target >= context.settings["max_tokens"]:
            yield rqat.Problem(
                f"no completion is longer than target={self.target}, since prompt and completion together have "
                f"max_tokens={context.settings['max_tokens']}.",
                "Lower target.",
                "target",
                "warning",
            )


class Brief(rqat.Reward):
    """Tokens beyond the target as a share of the tokens there are beyond it."""

    options: Options

    def score(self, completion: rqat.Completion, row: rqat.Row, verdict: rqat.Verdict | None) -> float:
        if self.options.only_right and verdict != "correct":
            return 0.0
        room = max(1, completion.limit - self.options.target)
        return max(0, len(completion.tokens) - self.options.target) / room


@rqat.hookimpl
def register_rewards(register: rqat.RegisterReward) -> None:
    register("acme-brief", options=Options, load=":Brief", summary="tokens beyond a target, as a share of what is left")
