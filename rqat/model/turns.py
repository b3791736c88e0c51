"""One forward pass of a block over all batches that stops wherever a group of layers is about to read its input.

So layers can be changed between two stops: what the next ones read is what the changed ones put out, and statistics and
outputs come of the same pass. Every batch's pass waits in a thread of its own, and one thread works at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


class _Ended(BaseException):
    """Ends a pass that nobody waits for any more."""


class Pass(threading.Thread):
    """The pass of one batch.

    Attributes:
        input: what the layer it stands before is about to read.
        output: what the pass came to; None before its end.
    """

    def __init__(self, work: Callable[[], Tensor]) -> None:
        super().__init__(daemon=True)
        self.input: Tensor | None = None
        self.output: Tensor | None = None
        self._pass = work
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._place: int | None = None
        self._failure: BaseException | None = None
        self.start()

    def go_on(self) -> int | None:
        """Works to the next stop, and says which it is; None at the end.

        Raises:
            Whatever the pass raised.
        """
        self._go.release()
        self._stopped.acquire()
        if self._failure is not None:
            raise self._failure
        return self._place

    def run(self) -> None:
        """See `threading.Thread`."""
        try:
            self._wait()
            self.output = self._pass()
        except _Ended:
            return
        except BaseException as failure:  # which whoever waits for it raises
            self._failure = failure
        self._place = None
        self._stopped.release()

    def stop(self, number: int, given: Tensor) -> None:
        """Called by the pass itself: waits at a stop."""
        self._place, self.input = number, given
        self._stopped.release()
        self._wait()
        self.input = None

    def end(self) -> None:
        """Ends it wherever it stands."""
        self._ended = True
        self._go.release()
        self.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._ended:
            raise _Ended


@contextmanager
def passes(works: Sequence[Callable[[], Tensor]], stops: Sequence[nn.Module]) -> Iterator[list[Pass]]:
    """A pass for each of `works`, that stops before each of the modules `stops` is called; all ended at the end."""

    def hook(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def wait(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            current = threading.current_thread()
            if isinstance(current, Pass):
                current.stop(number, inputs[0])

        return wait

    with ExitStack() as ends:
        for number, module in enumerate(stops):
            ends.callback(module.register_forward_pre_hook(hook(number)).remove)
        begun = []
        for work in works:
            begun.append(Pass(work))
            ends.callback(begun[-1].end)
        yield begun
