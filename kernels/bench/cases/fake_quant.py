"""Fake quantization with autograd, of weights and of activations, against eager and compiled torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..bench import Absent, Bench
from ..registry import Job
from ..table import Row

OPS = ("fake_quant",)


def jobs() -> list[Job]:
    """A check; the largest layer; activations."""
    return [Job("fake_quant", "odd shapes", 2, _check, check=True)]


def _check(bench: Bench) -> Iterator[Row]:
    raise Absent("fake_quant")
    yield
