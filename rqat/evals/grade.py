"""Whether a completion ends in the right answer: one function for evaluations, rewards and `rqat grade`.

`judge` finds the final answer (`final_answer.py`), brings both answers into one spelling (`notation.py`), takes them
apart (`answers.py`) and compares them (`equality.py`): numbers exactly, with their units (`quantities.py`). What is
left is computed by math-verify's parser and with numbers, in a process of its own (`checker.py`), which is killed when
it takes too long: then the verdict is `unverifiable`, counted by itself and never as correct.

What counts as equal, case by case, is written in docs/explain/grading.md; the table of cases is
tests/rqat/evals/grading_cases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..contracts import Verdict
from .checking import CHECKER
from .equality import same
from .final_answer import ANY, SHORT, Form, answering, boxed, final_answer
from .finding import Finding
from .notation import cleaned, compact

__all__ = ["ANY", "Form", "Judgement", "boxed", "final_answer", "grade", "judge", "same_answer"]


class Judgement(NamedTuple):
    """What a completion is worth.

    Attributes:
        verdict: `correct`, `wrong` or `unverifiable`.
        reason: why, in a few words.
        answer: the answer that was judged; None where there is none.
    """

    verdict: Verdict
    reason: str
    answer: str | None = None


def judge(completion: str, answer: str, *, timeout_s: float = 5.0, forms: Sequence[Form] = ("boxed",)) -> Judgement:
    """Judges the final answer of a completion.

    Args:
        completion: what the model wrote.
        answer: the right answer, LaTeX or plain; or a text that ends in it in a `\\boxed{}`.
        timeout_s: seconds that comparing may take.
        forms: where the answer may stand; the first form that is found counts.
    """
    found = final_answer(completion, forms)
    if "short" in forms and len(answer) <= SHORT and compact(completion) == compact(answer) and cleaned(answer):
        return Judgement("correct", "equal", completion)  # `odd $n$`, of which the formula alone is not the answer
    if found is None:
        return Judgement("wrong", "no answer" if answering(completion) is not None else "thinking never ended")
    return Judgement(*_compare(found, answer, timeout_s), found)


def grade(completion: str, answer: str, *, timeout_s: float = 5.0, forms: Sequence[Form] = ("boxed",)) -> Verdict:
    """The verdict of `judge` alone."""
    return judge(completion, answer, timeout_s=timeout_s, forms=forms).verdict


def same_answer(found: str, answer: str, *, timeout_s: float = 5.0) -> Verdict:
    """Whether two final answers are equal; `answer` is the right one."""
    return _compare(found, answer, timeout_s).verdict


def _compare(found: str, answer: str, timeout_s: float) -> Finding:
    try:
        return same(found, _right(answer), lambda gold, text, kind: CHECKER.ask(gold, text, kind, timeout_s))
    except RecursionError:
        return Finding("unverifiable", "too deeply nested")


def _right(answer: str) -> str:
    """The right answer in a text that may be a whole solution."""
    if (found := final_answer(answer, ("boxed", "hashes"))) is not None:
        return found
    return (final_answer(answer, ANY) or answer) if len(answer) > SHORT else answer
