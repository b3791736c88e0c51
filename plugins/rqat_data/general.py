"""Prompts of all kinds: what a model that was trained on one kind of problems has lost is seen on others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import rqat

from . import GeneralOptions

FILE = Path(__file__).with_name("general.txt")
"""One prompt a line, written for rqat: explaining, writing, planning, translating, a little code."""


class General(rqat.Source):
    """All of them are of the split `validation`; there are none to train on."""

    options: GeneralOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        if split != "validation":
            raise rqat.DataError(
                f"The source 'general' has no split '{split}': it is for looking at what a model has lost, not for "
                "calibration or training.",
                hint="Name it under `rows` of the task `kl`; `magpie` has prompts of all kinds to train on.",
            )
        prompts = FILE.read_text(encoding="utf-8").splitlines()
        return iter([{"prompt": prompt, "place": f"general:{line}"} for line, prompt in enumerate(prompts, start=1)])
