"""A reward: short completions are worth more, and those that end by themselves."""

import rqat


class Options(rqat.Options):
    """Options of `my-brief`.

    Attributes:
        target: tokens up to which nothing is taken off.
    """

    target: int = 100


class Brief(rqat.Reward):
    options: Options

    def score(self, completion: rqat.Completion, row: rqat.Row, verdict: rqat.Verdict | None) -> float:
        if completion.truncated:
            return -1.0
        return -max(0, len(completion.tokens) - self.options.target) / completion.limit


@rqat.hookimpl
def register_rewards(register: rqat.RegisterReward) -> None:
    register("my-brief", options=Options, load=":Brief", summary="less for every token beyond a target")
