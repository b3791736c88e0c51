"""Hidden states of the calibration tokens on their way through the decoder blocks, and the statistics taken from them.

Blocks are run one at a time, so that statistics of only one block have to be held, and every block sees what the
already quantized blocks before it put out. Between two of them the hidden states of all tokens wait on the model's
device where they fit, else in the CPU's memory. Where a quantizer compares with the model before quantization, its
hidden states are carried beside them: every block is run on them while its weights are still the original ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import Block, LinearStats, Statistic, Streams
from ..errors import NumericsError
from .families import layout_of
from .layers import HEAD
from .memory import available_bytes
from .presence import Presence
from .saliency import Call, send_back, token_saliency
from .statistics import accumulate, add_inputs, empty, finish, taken
from .turns import passes
from .watching import hidden_of, recording, watching

if TYPE_CHECKING:
    import transformers

ROOM = 0.5
"""Share of a GPU's free memory that hidden states may take up; statistics, factors and a block's activations follow."""

HOST_ROOM = 0.1
"""Share of a host's free memory that passes of a block which wait may take up."""

HELD = 4
"""Hidden states that such a pass holds beside the input it waits with."""

MOST_THREADS = 256
"""Threads at most that they may wait in."""


@dataclass(frozen=True)
class TokenBatch:
    """Some calibration sequences.

    Attributes:
        input_ids: `(B, T)` token ids.
        attention_mask: `(B, T)` bool, False at padding, which stands on the right; None when there is none.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None


class Activations:
    """The hidden states of all batches at the input of one block, moved on from block to block.

    Args:
        model: a causal language model of one of the supported families.
        blocks: its decoder layers, by full name.
        batches: the calibration tokens.
        needs: what will be collected.
        tick: called with the share of a block's work that is done: first half outputs of the block before, second half
            statistics.
        presence: sees to it that what is run is there.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        blocks: Sequence[tuple[str, nn.Module]],
        batches: Sequence[TokenBatch],
        *,
        needs: frozenset[Statistic] = frozenset(),
        tick: Callable[[float], None] = lambda share: None,
        presence: Presence | None = None,
    ) -> None:
        self._model = model
        self._base = model.get_submodule("model")
        self._blocks = blocks
        self._batches = batches
        self._tick = tick
        self._presence = presence or Presence()
        self._device = self._presence.device or next(model.parameters()).device
        self._hidden: list[Tensor] = []
        self._rows: dict[int, Tensor] = {}
        self._keywords: dict[torch.Size, list[dict[str, Any]]] = {}
        self._at = 0
        self._needs = needs
        self._compares = bool(needs & {"cross", "streams"})
        # What a quantizer differentiates through must not be inference tensors.
        self._quietly = torch.no_grad if "streams" in needs else torch.inference_mode
        self._original: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._saliency: dict[str, list[Tensor]] = {}

    def weigh(self, model: transformers.PreTrainedModel, blocks: Sequence[Block]) -> None:
        """Finds what every token counts in the Hessians of `blocks`, of the model as it is; to be called first."""
        if "saliency" not in self._needs:
            return
        modules = [module for _, module in self._blocks]
        watched = {
            block.full_name(group.names[0]): [block.full_name(name) for name in group.names]
            for block in blocks
            if any(block.module is module for module in modules)
            for group in block.inputs
        }
        self._saliency = token_saliency(model, modules, watched, *self._for_passes_back())

    def send_back(
        self, model: transformers.PreTrainedModel, around: Callable[[int, slice], AbstractContextManager[None]]
    ) -> None:
        """Passes all batches through the model and back, as it is: see `saliency.send_back`."""
        send_back(model, [module for _, module in self._blocks], *self._for_passes_back(), around)

    def _for_passes_back(self) -> tuple[list[tuple[Tensor, Tensor | None]], Call, Callable[[], Any]]:
        """Batches, what the blocks are called with, and a context in which they pass their inputs on."""
        modules = [module for _, module in self._blocks]
        batches = [(batch.input_ids, batch.attention_mask) for batch in self._batches]
        return batches, lambda ids: self._call(TokenBatch(ids)), lambda: recording(modules, [])

    def remember(self, index: int) -> None:
        """Runs the original block at `index` on the original hidden states, before anybody changes it.

        To be called for every block in order, the model's end included; does nothing where nobody compares. An index
        below 0 is the embedding, where it is going to be quantized.
        """
        if not self._compares:
            return
        with self._quietly():
            if index < 0:
                with self._presence.original(index):
                    self._embed()
                self._outputs, self._hidden = self._hidden, []
                return
            if not self._hidden:
                self._embed()
            self._original = self._outputs or [hidden.clone() for hidden in self._hidden]
            self._outputs = []
            if index == len(self._blocks):
                return
            with self._presence.original(index):
                for number, batch in enumerate(self._batches):
                    hidden = self._original[number].to(self._device)
                    out = hidden_of(self._blocks[index][1](hidden, **self._arguments(batch)[index]))
                    self._outputs.append(out.to(self._original[number].device))

    def awaits(self, index: int) -> bool:
        """Whether the decoder layer at `index` is still to be run, before the next one is looked at."""
        return bool(self._needs) and self._at <= index

    def streams(self, block: Block) -> Streams:
        """Hidden states around the block that `advance` and `remember` have reached."""

        def run(number: int, hidden: Tensor) -> Tensor:
            with torch.no_grad():
                keywords = self._keywords_here(TokenBatch(self._batches[number].input_ids[: len(hidden)]))
            return hidden_of(block.module(hidden.to(self._device), **keywords))

        masks = [batch.attention_mask for batch in self._batches]
        return Streams(self._hidden, self._original, self._outputs, masks, run)

    def advance(self, index: int) -> None:
        """Runs all blocks before the one at `index` that have not been run yet.

        Raises:
            NumericsError: a block puts out values that are not finite.
        """
        with self._quietly():
            if not self._hidden:
                self._embed()
            while self._at < index:
                self._pass_on()

    def _pass_on(self) -> None:
        """Runs the block that was reached."""
        name, module = self._blocks[self._at]
        finite = []
        with self._presence.passing(self._at):
            for number, batch in enumerate(self._batches):
                hidden = hidden_of(module(self._states(number), **self._arguments(batch)[self._at]))
                finite.append(torch.isfinite(hidden).all())
                self._put(number, hidden)
                self._tick((number + 1) / len(self._batches) / 2)
        _check_finite(finite, f"the output of {name}")
        self._at += 1

    def collect(self, block: Block) -> dict[str, LinearStats]:
        """Statistics at the input of every layer of the block reached by `advance`, by name inside the block.

        Layers with one input share one object. Padding is left out.

        Raises:
            NumericsError: an input holds values that are not finite.
        """
        stats = [empty(block.linear(group.names[0]).in_features, self._needs, self._device) for group in block.inputs]
        with torch.inference_mode():
            for number, batch in enumerate(self._batches):
                self._look(block, stats, number, batch)
                self._tick((1 + (number + 1) / len(self._batches)) / 2)
        return self._finished(block, stats)

    def _finished(self, block: Block, stats: Sequence[LinearStats]) -> dict[str, LinearStats]:
        """Sums as means, by the names of the layers of each group."""
        for group, one in zip(block.inputs, stats, strict=True):
            finish(one)
            if not all(bool(torch.isfinite(statistic).all()) for statistic in taken(one)):
                raise _not_finite(f"the input of {block.full_name(group.names[0])}")
        return {name: one for group, one in zip(block.inputs, stats, strict=True) for name in group.names}

    def collect_in_turn(self, block: Block) -> Iterator[tuple[Block, dict[str, LinearStats]]]:
        """As `collect`, a group of layers at a time: what each reads is put out by the block as it is by then.

        Whoever iterates changes the layers of a group before the next is asked for; in the end the block has been run.
        Where there is room, every batch's one pass waits for that; else the block is run anew for every group.
        """
        parts = [replace(block, inputs=[group]) for group in block.inputs]
        widest = max(block.linear(group.names[0]).in_features for group in block.inputs)
        if not self._may_wait(widest):
            yield from ((part, self.collect(part)) for part in parts)
            return

        def work(number: int, batch: TokenBatch) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with self._quietly():
                    return hidden_of(module(self._states(number), **keywords[number]))

            return run

        name, module = self._blocks[self._at]
        with self._quietly():
            keywords = [self._keywords_here(batch) for batch in self._batches]
        works = [work(number, batch) for number, batch in enumerate(self._batches)]
        with passes(works, [block.linear(part.names()[0]) for part in parts]) as begun:
            for turn, part in enumerate(parts):
                stats = empty(block.linear(part.names()[0]).in_features, self._needs, self._device)
                with self._quietly():
                    for number, one in enumerate(begun):
                        stopped = one.go_on()
                        assert stopped == turn, f"{name} reads its inputs in another order than its family's layout"
                        assert one.input is not None
                        add_inputs(stats, one.input, self._real(number), self._weights_of(part, 0, number))
                        self._tick((turn + (number + 1) / len(begun)) / (len(parts) + 1))
                yield part, self._finished(part, [stats])
            finite = []
            with self._quietly():
                for number, one in enumerate(begun):
                    one.go_on()
                    hidden, one.output = one.output, None
                    assert hidden is not None
                    finite.append(torch.isfinite(hidden).all())
                    self._put(number, hidden)
        _check_finite(finite, f"the output of {name}")
        self._at += 1

    def _may_wait(self, widest: int) -> bool:
        """Whether all batches may be in the middle of a block at once, with inputs so wide."""
        tokens = sum(one.input_ids.numel() for one in self._batches)
        hidden = self._hidden[0]
        states = (widest + HELD * hidden.shape[-1]) * hidden.element_size() * tokens
        if self._device.type == "cuda":
            return _fits(states, self._device)
        free = available_bytes()
        # Every thread that computes brings threads of its own.
        few = torch.get_num_threads() * len(self._batches) <= MOST_THREADS
        return few and free is not None and states <= HOST_ROOM * free

    def collect_end(self, block: Block) -> LinearStats:
        """Statistics at the input of the head, of the model as it is now; `block` has the head as its only layer.

        Raises:
            NumericsError: an input holds values that are not finite.
        """
        stats = empty(block.linear(block.names()[0]).in_features, self._needs, self._device)
        norm = self._model.get_submodule(layout_of(self._model.config).norm)
        before = replace(self._presence, passing=self._presence.original)
        ahead = Activations(self._model, self._blocks, self._batches, presence=before)
        ahead.advance(len(self._blocks))
        with torch.inference_mode():
            for number in range(len(self._batches)):
                rows = self._rows_of(number, norm(ahead._states(number)))
                accumulate(stats, rows, rows if "cross" in self._needs else None)
                self._tick((number + 1) / len(self._batches))
        finish(stats)
        if not all(bool(torch.isfinite(statistic).all()) for statistic in taken(stats)):
            raise _not_finite(f"the input of {HEAD}")
        return stats

    def _look(self, block: Block, stats: Sequence[LinearStats], number: int, batch: TokenBatch) -> None:
        """Adds one batch to the statistics of a block."""
        original: list[Tensor] = []
        if "cross" in self._needs:
            with watching(block, lambda _, x: original.append(x)):
                block.module(self._original[number].to(self._device), **self._keywords_here(batch))

        def add(index: int, x: Tensor) -> None:
            weight = self._weights_of(block, index, number)
            add_inputs(stats[index], x, self._real(number), weight, original[index] if original else None)

        with watching(block, add):
            block.module(self._states(number), **self._keywords_here(batch))

    def _rows_of(self, number: int, x: Tensor) -> Tensor:
        """Inputs `(B, T, I)` of a batch as `(N, I)`, without padding."""
        rows, real = x.flatten(0, 1), self._real(number)
        return rows if real is None else rows.index_select(0, real)

    def _weights_of(self, block: Block, group: int, number: int) -> Tensor | None:
        """What the tokens `(B T,)` of a batch count at the input of a group of layers; None: all the same."""
        found = self._saliency.get(block.full_name(block.inputs[group].names[0]))
        return None if found is None else found[number]

    def _embed(self) -> None:
        """The tokens' embeddings, and a place for the hidden states of every batch."""
        finite = []
        with self._presence.embedding():
            for number, batch in enumerate(self._batches):
                hidden, self._keywords[batch.input_ids.shape] = self._call(batch)
                if not number:
                    tokens = sum(one.input_ids.numel() for one in self._batches)
                    streams = 3 if self._compares else 1
                    fits = _fits(streams * hidden.nbytes // batch.input_ids.numel() * tokens, self._device)
                place = hidden if fits else torch.empty_like(hidden, device="cpu", pin_memory=True)
                self._hidden.append(place)
                self._put(number, hidden)
                finite.append(torch.isfinite(hidden).all())
        _check_finite(finite, "the output of model.embed_tokens")

    def _states(self, number: int) -> Tensor:
        """Hidden states of a batch, on the model's device."""
        return self._hidden[number].to(self._device, non_blocking=True)

    def _put(self, number: int, hidden: Tensor) -> None:
        """Keeps new hidden states of a batch."""
        if self._hidden[number].device == hidden.device:
            self._hidden[number] = hidden
        else:  # to pinned memory that only this stream reads again, so there is nothing to wait for
            self._hidden[number].copy_(hidden, non_blocking=True)

    def _real(self, number: int) -> Tensor | None:
        """Places of a batch's tokens that are no padding, in `(B T)`; None without padding."""
        mask = self._batches[number].attention_mask
        if mask is None:
            return None
        if number not in self._rows:
            self._rows[number] = mask.flatten().nonzero()[:, 0].to(self._device)
        return self._rows[number]

    def _keywords_here(self, batch: TokenBatch) -> dict[str, Any]:
        """What the block that was reached is called with; the model's end takes hidden states only."""
        return self._arguments(batch)[self._at] if self._at < len(self._blocks) else {}

    def _arguments(self, batch: TokenBatch) -> list[dict[str, Any]]:
        """What the model hands to each of its blocks beside hidden states, the same for all batches of a shape.

        No mask of padding is among it: padding stands on the right, where no token before it looks, and statistics
        leave it out. Without a mask, attention runs in its fastest form.
        """
        shape = batch.input_ids.shape
        if shape not in self._keywords:
            with self._presence.embedding():
                self._keywords[shape] = self._call(batch)[1]
        return self._keywords[shape]

    def _call(self, batch: TokenBatch) -> tuple[Tensor, list[dict[str, Any]]]:
        """Embedded tokens, and the keywords with which the model calls each block.

        Masks differ between blocks with and without a sliding window; the model itself knows best. Its blocks pass
        their input on unchanged meanwhile, so this costs next to nothing.
        """
        seen: list[tuple[Tensor, dict[str, Any]]] = []
        with recording([module for _, module in self._blocks], seen):
            self._base(input_ids=batch.input_ids.to(self._device), use_cache=False)
        return seen[0][0], [keywords for _, keywords in seen]


def _fits(states: int, device: torch.device) -> bool:
    """Whether that many bytes of hidden states may stay on the device."""
    return device.type != "cuda" or states <= ROOM * torch.cuda.mem_get_info(device)[0]


def _check_finite(finite: Sequence[Tensor], what: str) -> None:
    """Looks at the verdicts of all batches at once: on a GPU, looking means waiting."""
    if not bool(torch.stack(list(finite)).all()):
        raise _not_finite(what)


def _not_finite(what: str) -> NumericsError:
    return NumericsError(
        f"{what[0].upper()}{what[1:]} is not finite on the calibration data.",
        hint="The weights are damaged, or the activations overflow the model's dtype; try model.dtype: float32.",
    )
