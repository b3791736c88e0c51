"""Arithmetic problems as training and calibration rows."""

from __future__ import annotations

from collections.abc import Iterator

import rqat

from . import SourceOptions
from .problems import problems


class Arith(rqat.Source):
    """Problems with worked solutions; the generator keeps the splits apart by the arithmetic itself."""

    options: SourceOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if split == "test":
            raise rqat.DataError(
                "The test split of arith is for evaluation, not for calibration or training.",
                hint="Use split 'train' or 'validation' here, and `evaluate: [{task: arith}]`.",
            )
        made = problems(split, seed=seed, steps=self.options.steps, limit=self.options.rows)
        return ({"prompt": p.prompt, "completion": p.solution, "answer": p.answer} for p in made)
