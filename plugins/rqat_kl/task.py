"""KL(original || model) per token and perplexity, with logits in pieces, so that memory stays small."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import rqat

from . import KlOptions

if TYPE_CHECKING:
    import transformers

PIECE_ELEMENTS = 1 << 24
"""Logits that exist at once, of each model: 64 MiB in float32."""


class Kl(rqat.Comparison):
    """Over the tokens of the tokenizer only: rows of the head beyond them, which pad the vocabulary, mean nothing.

        kl          mean over counted positions t of  sum_v p_t(v) (log p_t(v) - log q_t(v)),  in nats
        perplexity  exp of the mean over the same positions of  -log q_t(next token)

    `p` is the original, `q` the model, softmaxes in float32.
    """

    options: KlOptions

    def compare(
        self,
        model: transformers.PreTrainedModel,
        original: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        rows: Sequence[rqat.TokenRow],
        advance: Callable[[int], None],
    ) -> tuple[Mapping[str, float], Sequence[Mapping[str, float]]]:
        """See `rqat.Comparison`."""
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        sums = [[0, 0.0, 0.0] for _ in rows]
        for row, sequence in self._sequences(rows):
            count, divergence, surprise = _sums(model, original, sequence, vocabulary)
            sums[row][0] += count
            sums[row][1] += divergence
            sums[row][2] += surprise
            advance(row)
        positions = sum(count for count, _, _ in sums)
        if not positions:
            raise rqat.DataError(
                "kl: no token counts.", hint="Use longer rows, fewer tokens with `pack`, or another source."
            )
        per_row = [
            {"tokens": count, "kl": divergence / max(1, count), "nll": surprise / max(1, count)}
            for count, divergence, surprise in sums
        ]
        mean = sum(surprise for *_, surprise in sums) / positions
        figures = {
            "kl": sum(divergence for _, divergence, _ in sums) / positions,
            "perplexity": math.exp(mean) if mean < math.log(1e30) else math.inf,
        }
        return figures, per_row

    def _sequences(self, rows: Sequence[rqat.TokenRow]) -> Iterator[tuple[int, rqat.TokenRow]]:
        """Sequences of at most `tokens`, each with the row its figures go to; a packed one goes to that it ends in."""
        longest = self.options.tokens
        if self.options.pack:
            stream: list[int] = []
            for number, row in enumerate(rows):
                stream += row.tokens
                while len(stream) >= longest:
                    yield number, rqat.TokenRow(tuple(stream[:longest]), 1)
                    del stream[:longest]
            return
        for number, row in enumerate(rows):
            prompt = row.prompt if self.options.positions == "completion" else 0
            for start in range(0, len(row.tokens), longest):
                piece = row.tokens[start : start + longest]
                counted_from = min(max(prompt - start, 1), len(piece))
                if counted_from < len(piece):
                    yield number, rqat.TokenRow(piece, counted_from)


def _sums(
    model: transformers.PreTrainedModel,
    original: transformers.PreTrainedModel,
    sequence: rqat.TokenRow,
    vocabulary: int,
) -> tuple[int, float, float]:
    """How many tokens of a sequence count, and the sums of divergence and of negative log-likelihood over them."""
    first = sequence.prompt - 1  # the position that predicts the first counted token
    next_tokens = torch.tensor(sequence.tokens[sequence.prompt :], device=model.device)
    mine = _Logits(model, sequence.tokens, first, vocabulary)
    theirs = mine if original is model else _Logits(original, sequence.tokens, first, vocabulary)
    divergence = surprise = 0.0
    size = max(1, PIECE_ELEMENTS // vocabulary)
    for start in range(0, len(next_tokens), size):
        rows = slice(start, start + size)
        log_q = mine.log_softmax(rows)
        surprise -= float(log_q.gather(-1, next_tokens[rows][:, None]).double().sum())
        if original is not model:
            log_p = theirs.log_softmax(rows).to(log_q.device)
            divergence += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
    return len(next_tokens), divergence, surprise


class _Logits:
    """The logits of one sequence from position `first` on, but the last: computed from hidden states when asked for."""

    def __init__(self, model: transformers.PreTrainedModel, tokens: Sequence[int], first: int, vocabulary: int) -> None:
        ids = torch.tensor([list(tokens)], device=model.device)
        self._width = vocabulary
        self._head: Callable[[Tensor], Tensor] = lambda logits: logits
        if rqat.scaled_logits(model):
            found = model(input_ids=ids, use_cache=False).logits
        else:
            found = _hidden(model, ids)
            self._head = model.get_output_embeddings()
        self._states: Tensor = found[0, first:-1]

    def log_softmax(self, rows: slice) -> Tensor:
        """`(T, V)` float32."""
        return self._head(self._states[rows])[:, : self._width].float().log_softmax(-1)


def _hidden(model: transformers.PreTrainedModel, ids: Tensor) -> Tensor:
    """Last hidden states `(B, T, d)`, by way of the whole model: compressed layers open up when it is called."""
    inner: Any = model
    seen: list[Any] = []
    fewest = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    handle = inner.base_model.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        inner(input_ids=ids, use_cache=False, **fewest)
    finally:
        handle.remove()
    hidden: Tensor = seen[-1][0]
    return hidden
