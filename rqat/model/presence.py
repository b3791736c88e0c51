"""Which parts of a model have their weights while its decoder layers are run, and which of them: before or after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from ..contracts import Block
from .block_store import BlockStore
from .layers import EMBEDDING, HEAD
from .streaming import Streamed
from .unloading import Unloading


@dataclass(frozen=True)
class Presence:
    """Contexts in which a part of the model has its weights; by default all have theirs all the time.

    Attributes:
        embedding: as the tokens are to be embedded: quantized, where it is already.
        original: of the decoder layer at an index, or of the embedding at one below 0, before quantization.
        passing: of the decoder layer at an index, as it is by then; it is run for the last time.
        device: where the model computes; None: where its parameters are.
    """

    embedding: Callable[[], AbstractContextManager[None]] = nullcontext
    original: Callable[[int], AbstractContextManager[None]] = lambda index: nullcontext()
    passing: Callable[[int], AbstractContextManager[None]] = lambda index: nullcontext()
    device: torch.device | None = None


def part_of(block: Block) -> str:
    """The part of the model that a block is, see `Streamed`."""
    if not block.name:
        return HEAD
    return EMBEDDING if block.name == EMBEDDING.rpartition(".")[0] else block.name


def presence_of(
    weights: Streamed, blocks: Sequence[Block], decoder: Sequence[str], store: BlockStore, unloading: Unloading
) -> Presence:
    """Reads parts that are not there: what is finished from where finished blocks are kept, the others as they were.

    Args:
        blocks: all that are to be quantized.
        decoder: the decoder layers by full name.
        unloading: what the store is filled through.
    """
    by_part = {part_of(block): block for block in blocks}

    def enter(part: str) -> bool:
        """As it is by now; whether it was not there."""
        if weights.has(part):
            return False
        unloading.wait()
        block = by_part.get(part)
        finished = block is not None and store.holds(block)
        weights.enter(part, read=not finished)
        if finished and block is not None:
            store.restore(block)
        return True

    @contextmanager
    def embedding() -> Iterator[None]:
        entered = enter(EMBEDDING)
        try:
            yield
        finally:
            if entered:
                weights.leave(EMBEDDING)

    @contextmanager
    def passing(index: int) -> Iterator[None]:
        enter(decoder[index])
        try:
            yield
        finally:
            weights.leave(decoder[index])

    def original(index: int) -> AbstractContextManager[None]:
        return weights.present(EMBEDDING if index < 0 else decoder[index])

    return Presence(embedding, original, passing, weights.device)
