"""A recipe's rewards as TRL's reward functions. Every completion is graded once, whatever the number of rewards.

Beside the means that TRL logs for every reward, two shares of a step's completions are logged: `unverifiable`, where
the grader could not judge, and `repetition`, where the text ends in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..contracts import Completion, Reward, RewardFunction, Row, Task, Verdict
from ..errors import RqatError
from ..generation.complete import completion_from
from ..generation.prompts import Prompt

if TYPE_CHECKING:
    import transformers

LogMetric = Callable[[str, float], Any]

Judged = tuple[Completion, Row, Verdict | None]


class Judge:
    """Grades a batch of completions when the first reward function asks, and keeps it for the others.

    Args:
        task: whose grader judges; None: nobody does, for rewards that need no verdict.
        rows: the source's rows, which the column `row` of the training data counts, each with its `place`.
        ends: ids that end a completion.
        limit: tokens a completion may have.
    """

    def __init__(
        self,
        task: Task | None,
        rows: Sequence[Row],
        tokenizer: transformers.PreTrainedTokenizerBase,
        ends: Collection[int],
        limit: int,
    ) -> None:
        self.task, self.rows, self.tokenizer, self.ends, self.limit = task, rows, tokenizer, frozenset(ends), limit
        self._batch: tuple[list[int], list[tuple[int, ...]]] | None = None
        self._judged: list[Judged] = []

    def batch(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[Sequence[int]],
        log_metric: LogMetric,
    ) -> list[Judged]:
        """Completions with their rows and verdicts.

        Args:
            rows: which row each completion belongs to.
            prompts: token ids of what was asked.
            tokens: token ids of every completion.
            log_metric: TRL's; called once for a batch.
        """
        asked = (list(rows), [tuple(ids) for ids in tokens])
        if asked != self._batch:
            self._judged = [self._one(*one) for one in zip(rows, prompts, tokens, strict=True)]
            self._batch = asked
            count = len(self._judged)
            log_metric("unverifiable", sum(verdict == "unverifiable" for *_, verdict in self._judged) / count)
            log_metric("repetition", sum(completion.looping for completion, *_ in self._judged) / count)
        return self._judged

    def _one(self, number: int, prompt: Sequence[int], tokens: Sequence[int]) -> Judged:
        row = self.rows[number]
        asked = Prompt(str(self.tokenizer.decode(list(prompt))), tuple(prompt))
        completion = completion_from(self.tokenizer, asked, tokens, self.ends, self.limit)
        verdict = None if self.task is None else self.task.grade(completion.to_grade, row["answer"], row)
        return completion, row, verdict


def reward_function(name: str, reward: Reward, judge: Judge) -> RewardFunction:
    """A reward as TRL calls it; its mean is logged as `rewards/NAME/mean`.

    Raises:
        RqatError: when called, for a score that is not a finite number.
    """

    def scores(**columns: Any) -> list[float]:
        log_metric = columns.get("log_metric", lambda name, value: None)
        judged = judge.batch(columns["row"], columns["prompt_ids"], columns["completion_ids"], log_metric)
        return [_score(name, reward, *one) for one in judged]

    scores.__name__ = name
    return scores  # type: ignore[return-value]


def _score(name: str, reward: Reward, completion: Completion, row: Row, verdict: Verdict | None) -> float:
    found: Any = reward.score(completion, row, verdict)
    try:
        score = float(found)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise RqatError(
            f"the reward '{name}' gave {found!r} for a completion of {row['place']} "
            f"({len(completion.tokens)} tokens, graded {verdict}).",
            hint="A score has to be a finite number. Mend the reward, or leave it out of `rewards`.",
        )
    return score
