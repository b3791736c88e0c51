"""The cold-start gate: whether a quantized model gets enough right for learning from its own completions.

With rewards in {0, 1}, a prompt whose completions are all right or all wrong teaches nothing. On a model fresh from
low-bit rounding nearly all are wrong, and reinforcement learning collapses (arXiv 2601.14888). The gate samples some
prompts, grades the completions and compares two shares with the recipe's floors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..contracts import Completion, Row, Verdict
from ..errors import RqatError

SHOWN = 200
"""Characters of a text that are shown of an example."""

Grade = Callable[[str, str, Row], Verdict]


class Floors(Protocol):
    """What a recipe asks of the figures, and what is to be done when they miss it."""

    @property
    def pass_rate(self) -> float: ...

    @property
    def signal(self) -> float: ...

    @property
    def action(self) -> str: ...


@dataclass(frozen=True)
class GateFigures:
    """What was measured.

    Attributes:
        prompts: sampled prompts.
        samples: completions per prompt.
        correct: correct completions.
        pass_rate: their share.
        with_signal: prompts with both a correct and another completion.
        signal: their share.
        unverifiable: share of completions the checker could not judge.
        truncated: share of completions that did not end.
        mean_tokens: mean length of a completion.
    """

    prompts: int
    samples: int
    correct: int
    pass_rate: float
    with_signal: int
    signal: float
    unverifiable: float
    truncated: float
    mean_tokens: float


def measure(completions: Sequence[Sequence[Completion]], rows: Sequence[Row], grade: Grade) -> GateFigures:
    """Grades `completions`, one sequence per row."""
    verdicts = [
        [grade(c.text, row["answer"], row) for c in group] for group, row in zip(completions, rows, strict=True)
    ]
    right = [sum(verdict == "correct" for verdict in group) for group in verdicts]
    every = [c for group in completions for c in group]
    signal = sum(0 < count < len(group) for count, group in zip(right, verdicts, strict=True))
    return GateFigures(
        prompts=len(verdicts),
        samples=len(verdicts[0]),
        correct=sum(right),
        pass_rate=sum(right) / len(every),
        with_signal=signal,
        signal=signal / len(verdicts),
        unverifiable=sum(verdict == "unverifiable" for group in verdicts for verdict in group) / len(every),
        truncated=sum(not c.ended for c in every) / len(every),
        mean_tokens=sum(len(c.tokens) for c in every) / len(every),
    )


def judge(figures: GateFigures, floors: Floors) -> dict[str, Any]:
    """Figures, whether they pass, the action the recipe names, and `why` in words when they do not."""
    passed = figures.pass_rate >= floors.pass_rate and figures.signal >= floors.signal
    total = figures.prompts * figures.samples
    why = (
        f"{figures.correct} of {total} completions are correct "
        f"({figures.pass_rate:.1%}, floor {floors.pass_rate:.1%}), "
        f"{figures.with_signal} of {figures.prompts} prompts carry signal "
        f"({figures.signal:.1%}, floor {floors.signal:.1%})"
    )
    return {**asdict(figures), "passed": passed, "action": floors.action, "why": "" if passed else why}


def example_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a model wrote, to be shown where the gate stops: the first completion, with its prompt and answer."""
    if not lines:
        return ""
    first = lines[0]
    asked, wrote = (_shortened(first[key]) for key in ("prompt", "completion"))
    end = "" if first["ended"] else ", and was cut off there"
    return f" Asked {asked!r} (answer {first['answer']}), it wrote {wrote!r}{end}."


def _shortened(text: str) -> str:
    """The end of a text, where the answer is, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"... {words[-SHOWN:]}"


def stop_if_failed(verdict: dict[str, Any], objective: str, floors: Floors, example: str = "") -> None:
    """Raises RqatError for a failed gate whose action is to stop; `example` of what the model wrote stands in it."""
    if verdict["passed"] or floors.action != "stop":
        return
    raise RqatError(
        f"the model is not ready for {objective}: {verdict['why']}.{example}",
        hint="Distil longer first or use easier problems; or lower gate.pass_rate and gate.signal, or set gate.action "
        "to skip (keep the model as it is) or warn (train all the same).",
    )
