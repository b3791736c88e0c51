"""Problems, answers, and what a completion is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .data import Row
from .options import File, Options

Verdict = Literal["correct", "wrong", "unverifiable"]
"""`unverifiable`: the checker ran out of time or crashed on this answer; counted by itself, never as correct."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt: for evaluation, gate, rollouts, traces and `rqat generate` alike.

    Attributes:
        text: without special tokens.
        tokens: ids of the new tokens, the end token included.
        ended: it ended by itself; else it was cut off.
        limit: new tokens it was allowed.
        looping: it ends in one piece, said again and again.
        unclosed_think: it opened `<think>`, or the prompt did, and never closed it.
        logprobs: of every token, in nats, at the sampler's temperature, before top_p; None unless asked for.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool
    limit: int
    looping: bool = False
    unclosed_think: bool = False
    logprobs: tuple[float, ...] | None = None

    @property
    def truncated(self) -> bool:
        """Cut off before the model ended by itself."""
        return not self.ended


class TaskOptions(Options):
    """Options every task has; a task's own options derive from it.

    Attributes:
        data: file to read the problems from, for tasks that keep theirs in a file.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`.
        seeds: one run per seed; with `temperature: 0` one is enough.
        chat: wrap the prompt in the tokenizer's chat template; `auto` does it when the tokenizer has one.
    """

    data: File | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (42,)
    chat: Literal["auto", "yes", "no"] = "auto"


class Task(ABC):
    """Problems with answers that can be checked: what `rqat eval` runs and what rewards are computed from."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def problems(self) -> Sequence[Row]:
        """Rows with `prompt` and `answer`, always in the same order.

        Raises:
            DataError: the file is missing or malformed.
        """

    @abstractmethod
    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        """Whether a completion ends in the answer; `row` is the whole problem."""


class Reward(ABC):
    """What a completion is worth to an objective that is trained on rewards; several are weighted in a recipe.

    `rewards: {correct: 1.0, acme-brief: {weight: -0.1, target: 200}}`
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def score(self, completion: Completion, row: Row, verdict: Verdict | None) -> float:
        """A finite number.

        Args:
            row: the whole training row.
            verdict: of the step's task on this completion; None where the step names no task.
        """
