"""The state of every random generator that training draws from, as plain numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch


def random_state() -> dict[str, Any]:
    """Of this process: Python's, numpy's, torch's on the CPU and, where there is one, on this process's GPU."""
    version, numbers, spare = random.getstate()
    legacy: Any = numpy.random.get_state()
    name, words, *rest = legacy
    state = {
        "python": [version, list(numbers), spare],
        "numpy": [name, words.tolist(), *rest],
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Takes over what `random_state` gave."""
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers), spare))
    name, words, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(words, dtype=numpy.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


def _text(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
