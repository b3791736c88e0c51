"""What writes: tokens of prompts in, new tokens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

REPORT_SECONDS = 0.5
"""How often a writer says how far it is."""


class Written(NamedTuple):
    """What followed a prompt.

    Attributes:
        tokens: new tokens, the end token included.
        logprobs: of each, in nats, under the model's distribution at the temperature asked for, before top_p cuts it,
            which is what a trainer computes; of a greedy token, at temperature 1. None unless asked for.
    """

    tokens: list[int]
    logprobs: list[float] | None = None


class Writer(Protocol):
    """Writes with one model: by transformers (`TransformersWriter`), by rqat's own engine (`Engine`), or elsewhere.

    Attributes:
        name: what results call it.
    """

    @property
    def name(self) -> str: ...

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        ends: frozenset[int] = frozenset(),
        logprobs: bool = False,
        tell: Callable[[int, int], None] | None = None,
        stream: Callable[[list[int]], None] | None = None,
    ) -> list[Written]:
        """Continues every prompt up to `max_new_tokens`, or to the first of `ends`, which is the last token then.

        Args:
            max_new_tokens: of all, or of each.
            temperature: 0 is greedy; else tokens are drawn with torch's global generators.
            top_p: nucleus sampling bound (arXiv 1904.09751).
            logprobs: say how likely every token was.
            tell: called now and then with the number of finished completions and of new tokens.
            stream: receives the tokens of a single prompt as they are written.

        Raises:
            torch.OutOfMemoryError: there is no room, not even after the writer made its batches smaller if it can.
        """


def limits_of(prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]) -> list[int]:
    """New tokens allowed to every prompt.

    Raises:
        ValueError: there are more prompts than limits, or fewer.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    return [limit for _, limit in zip(prompts, limits, strict=True)]
