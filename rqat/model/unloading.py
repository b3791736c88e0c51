"""Takes finished blocks to disk, and off the GPU before, while the next block is being worked on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from ..contracts import Block, QuantizedWeight
from .block_store import BlockStore, LayerReport, others_of


class Unloading:
    """Copies layers to the CPU and keeps them in a `BlockStore`; to be used in a `with` statement.

    This happens in a second thread, on a GPU in a stream of its own, one block at a time; a failure comes up when the
    next block is handed over or at the end.
    """

    def __init__(self, store: BlockStore, device: torch.device) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._running: Future[None] | None = None

    def __enter__(self) -> Unloading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def take(self, block: Block, layers: dict[str, QuantizedWeight], reports: list[LayerReport]) -> None:
        """Hands over a block; what it is made of must not be changed any more, and may be let go of."""
        keep = partial(self._keep, block, layers, others_of(block), reports)
        self.wait()
        if self._stream is not None:
            keep = partial(self._after, torch.cuda.current_stream(self._stream.device).record_event(), keep)
        self._running = self._thread.submit(keep)

    def wait(self) -> None:
        """Until everything that was handed over is in the store."""
        if self._running is not None:
            self._running.result()
            self._running = None

    def _after(self, ready: torch.cuda.Event, keep: Callable[[], None]) -> None:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            keep()

    def _keep(
        self,
        block: Block,
        layers: dict[str, QuantizedWeight],
        others: Mapping[str, Tensor],
        reports: list[LayerReport],
    ) -> None:
        here = {name: layer.to("cpu") for name, layer in layers.items()}
        self._store.save(block, here, others, reports)
