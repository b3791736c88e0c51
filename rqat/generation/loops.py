"""Whether a completion goes round in circles; light, so that `rqat.is_looping` is."""

from __future__ import annotations

from collections.abc import Sequence

LOOP_PERIOD, LOOP_TIMES, LOOP_TOKENS = 256, 4, 32
"""A completion loops when it ends in a piece of up to 256 tokens, repeated 4 times or more over at least 32 tokens."""


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether the tokens end in one piece, said again and again; the last copy may be cut off."""
    tail = list(tokens[-LOOP_PERIOD * LOOP_TIMES :])
    for period in range(1, min(LOOP_PERIOD, len(tail) // LOOP_TIMES) + 1):
        span = max(period * LOOP_TIMES, LOOP_TOKENS)
        if span <= len(tail) and tail[-span + period :] == tail[-span:-period]:
            return True
    return False
