"""Hidden states of the calibration tokens on their way through the decoder blocks, and the statistics taken from them.

Blocks are run one at a time: between two of them the hidden states of all tokens wait on the CPU, so that statistics of
only one block have to be held, and every block sees what the already quantized blocks before it put out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import Block, LinearStats, Statistic
from ..errors import NumericsError

if TYPE_CHECKING:
    import transformers

CHUNK = 512
"""Columns of a Hessian computed at once, from the diagonal on to the right; the rest is mirrored at the end."""


@dataclass(frozen=True)
class TokenBatch:
    """Some calibration sequences.

    Attributes:
        input_ids: `(B, T)` token ids.
        attention_mask: `(B, T)` bool, False at padding, which stands on the right; None when there is none.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None


class _Collected(Exception):
    """Ends a forward pass when the last input of interest has been seen."""


class Activations:
    """The hidden states of all batches at the input of one block, moved on from block to block.

    Args:
        model: a causal language model of one of the supported families.
        blocks: its decoder layers, by full name.
        batches: the calibration tokens.
        tick: called with the share of a block's work that is done: first half outputs of the block before, second half
            statistics.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        blocks: Sequence[tuple[str, nn.Module]],
        batches: Sequence[TokenBatch],
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._base = model.get_submodule("model")
        self._blocks = blocks
        self._batches = batches
        self._tick = tick
        self._device = next(model.parameters()).device
        self._hidden: list[Tensor] = []
        self._at = 0

    @torch.inference_mode()
    def advance(self, index: int) -> None:
        """Runs all blocks before the one at `index` that have not been run yet.

        Raises:
            NumericsError: a block puts out values that are not finite.
        """
        if not self._hidden:
            self._hidden = [self._arguments(batch)[0].cpu() for batch in self._batches]
            self._check_finite("model.embed_tokens")
        while self._at < index:
            name, module = self._blocks[self._at]
            for number, batch in enumerate(self._batches):
                out = module(self._hidden[number].to(self._device), **self._arguments(batch)[1][self._at])
                self._hidden[number] = (out[0] if isinstance(out, tuple) else out).cpu()
                self._tick((number + 1) / len(self._batches) / 2)
            self._check_finite(name)
            self._at += 1

    def collect(self, block: Block, needs: frozenset[Statistic]) -> dict[str, LinearStats]:
        """Statistics at the input of every layer of the block reached by `advance`, by name inside the block.

        Layers with one input share one object. Padding is left out.

        Raises:
            NumericsError: an input holds values that are not finite.
        """
        stats = [self._empty(block.linear(group.names[0]).in_features, needs) for group in block.inputs]
        mask: Tensor | None = None
        seen = 0

        def hook(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                nonlocal seen
                x = inputs[0]
                accumulate(stats[index], x.flatten(0, 1) if mask is None else x[mask])
                seen += 1
                if seen == len(stats):
                    raise _Collected

            return observe

        handles = [
            block.linear(group.names[0]).register_forward_pre_hook(hook(index))
            for index, group in enumerate(block.inputs)
        ]
        try:
            with torch.inference_mode():
                for number, batch in enumerate(self._batches):
                    mask = None if batch.attention_mask is None else batch.attention_mask.to(self._device)
                    seen = 0
                    with suppress(_Collected):
                        block.module(self._hidden[number].to(self._device), **self._arguments(batch)[1][self._at])
                    self._tick((1 + (number + 1) / len(self._batches)) / 2)
        finally:
            for handle in handles:
                handle.remove()
        for group, one in zip(block.inputs, stats, strict=True):
            finish(one)
            for statistic in (one.hessian, one.absmean):
                if statistic is not None and not torch.isfinite(statistic).all():
                    raise _not_finite(f"the input of {block.name}.{group.names[0]}")
        return {name: one for group, one in zip(block.inputs, stats, strict=True) for name in group.names}

    def _empty(self, width: int, needs: frozenset[Statistic]) -> LinearStats:
        return LinearStats(
            hessian=torch.zeros(width, width, device=self._device) if "hessian" in needs else None,
            absmean=torch.zeros(width, device=self._device) if "absmean" in needs else None,
        )

    def _arguments(self, batch: TokenBatch) -> tuple[Tensor, list[dict[str, Any]]]:
        """What the model hands to each of its blocks: embedded tokens, and keywords (mask, positions) per block.

        Masks differ between blocks with and without a sliding window; the model itself knows best. Its blocks pass
        their input on unchanged meanwhile, so this costs next to nothing and no mask is kept.
        """
        seen: list[tuple[Tensor, dict[str, Any]]] = []
        with _recording([module for _, module in self._blocks], seen):
            mask = None if batch.attention_mask is None else batch.attention_mask.to(self._device)
            self._base(input_ids=batch.input_ids.to(self._device), attention_mask=mask, use_cache=False)
        return seen[0][0], [keywords for _, keywords in seen]

    def _check_finite(self, name: str) -> None:
        if not all(bool(torch.isfinite(hidden).all()) for hidden in self._hidden):
            raise _not_finite(f"the output of {name}")


@contextmanager
def _recording(modules: Sequence[nn.Module], seen: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[None]:
    """Makes modules note how they are called instead of computing."""

    def record(hidden: Tensor, **keywords: Any) -> Tensor:
        seen.append((hidden, keywords))
        return hidden

    for module in modules:
        module.forward = record
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def accumulate(stats: LinearStats, x: Tensor) -> None:
    """Adds inputs `x (N, I)` to sums of `x x^T` and `|x|` in float32; `finish` makes means of them."""
    x = x.float()
    stats.tokens += x.shape[0]
    if stats.absmean is not None:
        stats.absmean.add_(x.abs().sum(0))
    if stats.hessian is not None:
        for start in range(0, x.shape[1], CHUNK):
            stop = start + CHUNK
            stats.hessian[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])


def finish(stats: LinearStats) -> None:
    """Turns the sums of `accumulate` into means over tokens, and mirrors the Hessian's upper half."""
    if stats.absmean is not None:
        stats.absmean.div_(stats.tokens)
    if stats.hessian is not None:
        hessian = stats.hessian.div_(stats.tokens)
        for start in range(0, hessian.shape[0], CHUNK):
            stop = start + CHUNK
            # Inside a chunk on the diagonal both halves are there; copying one makes them equal to the bit.
            square = hessian[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def _not_finite(what: str) -> NumericsError:
    return NumericsError(
        f"{what[0].upper()}{what[1:]} is not finite on the calibration data.",
        hint="The weights are damaged, or the activations overflow the model's dtype; try model.dtype: float32.",
    )
