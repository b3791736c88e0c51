"""Problems, answers, and what a completion is worth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from . import returned
from .data import Row, Source, Split
from .options import File, Options, Part, Seed

if TYPE_CHECKING:
    import transformers

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

    @property
    def to_grade(self) -> str:
        """The text as a task's grader gets it: thinking that the prompt opened and nothing closed shows that it did."""
        return f"<think>{self.text}" if self.unclosed_think and "<think>" not in self.text else self.text


class TaskOptions(Options):
    """Options every task has; a task's own options derive from it.

    Attributes:
        data: file to read the problems from, for tasks that keep theirs in a file.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`.
        seeds: one run per seed; with `temperature: 0` one is enough.
        chat: wrap the prompt in the tokenizer's chat template; `auto` does it when the tokenizer has one.
        system: a system prompt before every problem; it takes a chat template.
        chat_template_kwargs: settings of the chat template, such as `{enable_thinking: false}`.
    """

    data: File | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (42,)
    chat: Literal["auto", "yes", "no"] = "auto"
    system: str = ""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("max_new_tokens", "temperature", "top_p")
    @classmethod
    def _can_be_sampled(cls, given: float, about: ValidationInfo) -> float:
        """Else it would be greedy without a word; also of options that a task declares anew."""
        low, high = {"temperature": (0, math.inf), "top_p": (0, 1)}.get(str(about.field_name), (1, math.inf))
        if not (low <= given <= high and math.isfinite(given)):
            bounds = f"from {low} to {high}" if math.isfinite(high) else f"{low} or more"
            raise ValueError(f"{given}: has to be {bounds}.")
        return given

    @field_validator("seeds")
    @classmethod
    def _each_a_run(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        """What was answered is kept by problem and seed: of two alike one would be waited for without end."""
        twice = sorted({seed for seed in given if given.count(seed) > 1})
        if twice or not given:
            wrong = f"{twice[0]} stands there twice" if twice else "there is none"
            raise ValueError(f"{wrong}; name each run's seed once, such as [42, 43, 44].")
        return given


class Task(ABC):
    """Problems with answers that can be checked: what `rqat eval` runs and what rewards are computed from."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        returned.held_to(cls, {"problems": returned.problems, "grade": returned.verdict})

    @abstractmethod
    def problems(self) -> Sequence[Row]:
        """Rows with `prompt` and `answer`, always in the same order.

        Raises:
            DataError: the file is missing or malformed.
        """

    @abstractmethod
    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        """Whether a completion ends in the answer; `row` is the whole problem."""


class ComparisonOptions(TaskOptions):
    """Options every task has that compares a model with its original; its own options derive from it.

    Attributes:
        rows: sources of the rows, read one after the other.
        split: which of their rows; such as are neither trained on nor calibrated on.
        seed: their order.
    """

    rows: list[Part] = Field(min_length=1)
    split: Split = "validation"
    seed: Seed = 0


@dataclass(frozen=True)
class TokenRow:
    """A row as the model gets it.

    Attributes:
        tokens: prompt and what follows it, the end token included.
        prompt: how many of them are the prompt's; of a plain text, none or its start token.
    """

    tokens: tuple[int, ...]
    prompt: int


class Comparison(Task):
    """A task that compares a model with its original on rows, in place of asking it problems.

    Its card says which figures it finds: `compares=("kl", "perplexity")`.
    """

    sources: Sequence[Source] = ()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        returned.held_to(cls, {"rows": returned.rows, "compare": returned.compared})

    def combine(self, parts: Sequence[Source]) -> None:
        """Receives the sources named by its options, built by the host, in order."""
        self.sources = parts

    def rows(self) -> Iterator[Row]:
        """What is compared on, always in the same order.

        Raises:
            DataError: a source cannot be read.
        """
        return chain.from_iterable(source.rows(self.options.split, self.options.seed) for source in self.sources)

    def problems(self) -> Sequence[Row]:
        """None: there is nothing to be asked."""
        return ()

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        """Never called."""
        return "unverifiable"

    @abstractmethod
    def compare(
        self,
        model: transformers.PreTrainedModel,
        original: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        rows: Sequence[TokenRow],
        advance: Callable[[int], None],
    ) -> tuple[Mapping[str, float], Sequence[Mapping[str, float]]]:
        """The figures of the card over all rows, and those of every row beside its number of `tokens` that count.

        Both models are in eval mode, and no gradient is recorded; they may be the same one, and stay as they are.

        Args:
            advance: told how many rows are done.

        Raises:
            DataError: no token counts.
        """


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
