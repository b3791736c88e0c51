"""KL(original || model) per token and perplexity, with logits in pieces, so that memory stays small."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import rqat

from . import KlOptions

if TYPE_CHECKING:
    import transformers

PIECE_ELEMENTS = 1 << 24
"""Logits that exist at once, of each model: 64 MiB in float32."""

TOGETHER_TOKENS = {"cuda": 4096}
"""Tokens, padding included, that run through a model together, by kind of device; on others every sequence runs alone.
A GPU would wait for the launches of so small a pass; a CPU would compute the padding."""


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
        most = 0 if rqat.scaled_logits(model) else TOGETHER_TOKENS.get(model.device.type, 0)
        longest = min(self.options.tokens, rqat.context_length(model), rqat.context_length(original))
        for group in _groups(self._sequences(rows, longest), most):
            sequences = [sequence for _, sequence in group]
            mine = _logits(model, sequences, vocabulary)
            theirs = mine if original is model else _logits(original, sequences, vocabulary)
            for (row, sequence), q, p in zip(group, mine, theirs, strict=True):
                count, divergence, surprise = _sums(q, p, sequence)
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

    def _sequences(self, rows: Sequence[rqat.TokenRow], longest: int) -> Iterator[tuple[int, rqat.TokenRow]]:
        """Sequences of so many tokens at most, each with the row its figures go to; a packed one has all, and goes to
        the row that it ends in."""
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


def _groups(sequences: Iterable[tuple[int, rqat.TokenRow]], most: int) -> Iterator[list[tuple[int, rqat.TokenRow]]]:
    """Neighbours that run through a model together, padded to the longest: at most so many tokens, or one sequence."""
    group: list[tuple[int, rqat.TokenRow]] = []
    longest = 0
    for row, sequence in sequences:
        longest = max(longest, len(sequence.tokens))
        if group and longest * (len(group) + 1) > most:
            yield group
            group, longest = [], len(sequence.tokens)
        group.append((row, sequence))
    if group:
        yield group


def _sums(q: _Logits, p: _Logits, sequence: rqat.TokenRow) -> tuple[int, float, float]:
    """How many tokens of a sequence count, and the sums of divergence and of negative log-likelihood over them."""
    device = q.states.device
    next_tokens = torch.tensor(sequence.tokens[sequence.prompt :], device=device)
    divergence = torch.zeros((), dtype=torch.float64, device=device)
    surprise = torch.zeros_like(divergence)
    size = max(1, PIECE_ELEMENTS // q.width)
    for start in range(0, len(next_tokens), size):
        rows = slice(start, start + size)
        log_q = q.log_softmax(rows)
        surprise -= log_q.gather(-1, next_tokens[rows][:, None]).double().sum()
        if p is not q:
            log_p = p.log_softmax(rows).to(device)
            divergence += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum()
    return len(next_tokens), float(divergence), float(surprise)


@dataclass
class _Logits:
    """The logits of one sequence from the position on that predicts its first counted token: computed when asked for.

    Attributes:
        states: `(T, d)` last hidden states, or the logits themselves.
        head: what makes logits of them.
        width: of the vocabulary.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    width: int

    def log_softmax(self, rows: slice) -> Tensor:
        """`(T, V)` float32."""
        return self.head(self.states[rows])[:, : self.width].float().log_softmax(-1)


def _logits(model: transformers.PreTrainedModel, sequences: Sequence[rqat.TokenRow], vocabulary: int) -> list[_Logits]:
    """Those of sequences that run through a model together; what pads shorter ones stands behind them, unseen."""
    longest = max(len(sequence.tokens) for sequence in sequences)
    padded = [[*each.tokens, *each.tokens[-1:] * (longest - len(each.tokens))] for each in sequences]
    ids = torch.tensor(padded, device=model.device)
    head: Callable[[Tensor], Tensor] = lambda logits: logits  # noqa: E731
    if rqat.scaled_logits(model):
        found = model(input_ids=ids, use_cache=False).logits
    else:
        found = _hidden(model, ids)
        head = model.get_output_embeddings()
    return [
        _Logits(states[each.prompt - 1 : len(each.tokens) - 1], head, vocabulary)
        for states, each in zip(found, sequences, strict=True)
    ]


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
