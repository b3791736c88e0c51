"""A verdict about two answers, with its reason."""

from __future__ import annotations

from typing import NamedTuple

from ..contracts import Verdict


class Finding(NamedTuple):
    """A verdict and why."""

    verdict: Verdict
    reason: str


SAME = Finding("correct", "equal")
