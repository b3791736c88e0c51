"""Arithmetic problems as an evaluation, and as the judge of rewards."""

from __future__ import annotations

from collections.abc import Sequence

import rqat
from rqat.evals.grade import boxed

from . import ArithOptions
from .problems import problems

SEED = 0
"""Of the test problems: they are the same in every run."""


class ArithTask(rqat.Task):
    """Problems of the test split, graded by the number in the last box."""

    options: ArithOptions

    def problems(self) -> Sequence[rqat.Row]:
        """See `rqat.Task`."""
        made = problems("test", seed=SEED, steps=self.options.steps, limit=self.options.problems)
        return [{"prompt": p.prompt, "answer": p.answer} for p in made]

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        """Equal as text: the answers are plain integers, so nothing has to be simplified."""
        return "correct" if boxed(completion) == answer else "wrong"
