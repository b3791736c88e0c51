"""Timing of several ways to do one thing: interleaved, with a cold cache, median and quantiles.

On a GPU, work of less than `SHORT_US` is captured as a graph of many calls that rotate over distinct inputs of at least
`COLD_BYTES` in total, so that no input is in the cache when it is read; the graph's time is divided by the number of
calls. Longer work is timed call by call with device events, behind `AHEAD` writes of `COLD_BYTES` that empty the cache
and give the host time to launch it: on a slow host a call can take a third of a millisecond to launch, and a decision
by such a time would take a kernel of 6 us for long work.

Contenders take turns (A, B, A, B, ...), so that clocks and temperature are the same for all.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

COLD_BYTES = 256 << 20
AHEAD = 8
"""Writes queued before a timed call: about a millisecond of work on a GPU of 3 TB/s."""
SHORT_US = 200.0
"""Between events, a call takes up to 10 us more than in a graph: ways that are compared are all on one side of it."""
LONG_US = 200_000.0
LONG_ROUNDS = 3
"""Samples of work that takes `LONG_US` or more, which varies little and would take the others' time."""
LEAST_CALLS = 20
"""Calls in a graph, at least."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        call: does it once, on input number `i % copies`.
        copies: distinct inputs there are.
        graph: None captures short work only; True always, False never (work that waits for the host).
        samples: None takes as many as asked for, or `LONG_ROUNDS` of work that proves to be long; a number takes so
            many without any call before them: for baselines of seconds.
    """

    call: Callable[[int], Any]
    copies: int = 1
    graph: bool | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: median, 20 % and 80 % quantile; or the reason why there are none."""

    p50: float = 0.0
    p20: float = 0.0
    p80: float = 0.0
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.p50 > 0


class ContextLost(Exception):
    """The device no longer answers: no later call in this process can succeed."""


def copies_for(n_bytes: float) -> int:
    """How many inputs of `n_bytes` fill the cache several times over."""
    return max(1, min(1024, -(-COLD_BYTES // max(1, int(n_bytes)))))


def interleave(
    contenders: Mapping[str, Contender], *, device: str = "cuda", rounds: int = 15, warmup: int = 2
) -> dict[str, Timing]:
    """Times every contender; one that fails gets a note and does not stop the others.

    Raises:
        ContextLost: a contender broke the device's context.
    """
    clock = _DeviceClock() if device == "cuda" else _HostClock()
    ready: dict[str, Callable[[], Callable[[], float]]] = {}
    turns: dict[str, int] = {}
    timings: dict[str, Timing] = {}
    for name, contender in contenders.items():
        try:
            few = contender.samples
            if few is None:  # the first call may compile, the last one tells how long work takes
                took = [_seconds(contender, turn, device) for turn in range(max(1, warmup))]
                few = LONG_ROUNDS if took[-1] * 1e6 >= LONG_US else None
            ready[name] = clock.prepare(contender if few is None else replace(contender, graph=False))
            turns[name] = rounds if few is None else min(rounds, few)
        except Exception as error:
            timings[name] = Timing(note=describe(error))
            check_device(device, error)
    samples: dict[str, list[Callable[[], float]]] = {name: [] for name in ready}
    for turn in range(rounds):
        for name in ready if turn % 2 == 0 else reversed(ready):
            if name in timings or turn >= turns[name]:
                continue
            try:
                samples[name].append(ready[name]())
            except Exception as error:
                timings[name] = Timing(note=describe(error))
                check_device(device, error)
    clock.finish()
    for name, taken in samples.items():
        if name not in timings:
            timings[name] = _quantiles([read() for read in taken])
    return {name: timings[name] for name in contenders}


def once(work: Callable[[], Any], *, device: str = "cuda", rounds: int = 3, warmup: int = 1) -> Timing:
    """Wall time of long work in microseconds, the device idle before and after."""
    taken = []
    for turn in range(warmup + rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if turn >= warmup:
            taken.append((time.perf_counter() - start) * 1e6)
    return _quantiles(taken)


def in_graph(call: Callable[[int], Any], copies: int, *, device: str = "cuda", rounds: int = 7) -> Timing:
    """One way by itself, in a graph whatever it takes: `call(i)` for `i` from 0 to `copies` - 1, again and again."""
    clock = _DeviceClock() if device == "cuda" else _HostClock()
    sample = clock.prepare(Contender(lambda turn: call(turn % copies), copies, graph=True))
    return _quantiles([sample()() for _ in range(rounds)])


def peak_megabytes(work: Callable[[], Any]) -> float:
    """Device memory at the peak of `work`, beyond what was allocated before and beyond what it gives back (gradients,
    which every way has to keep), in 10^6 bytes."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    given = kept if isinstance(kept, (tuple, list)) else (kept,)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in given if torch.is_tensor(t)}
    return (peak - sum(storages.values())) / 1e6


def check_device(device: str, error: BaseException) -> None:
    """Raises ContextLost when the device no longer answers after `error`."""
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception as fatal:
        raise ContextLost(describe(error)) from fatal
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()


def describe(error: BaseException) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip(" ^")]
    # A compiler's first line is a place in the source; what was wrong there comes last.
    said = lines[:1] + (lines[-1:] if len(lines) > 1 and lines[0].startswith("at ") else [])
    return f"{type(error).__name__}: {' '.join(said)}"[:240]


class _DeviceClock:
    """Device events around graph replays or single calls."""

    def __init__(self) -> None:
        self._flush = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")

    def prepare(self, contender: Contender) -> Callable[[], Callable[[], float]]:
        """Captures; what it returns takes one sample, read when all is done."""
        graph = contender.graph
        if graph is None:
            guess = min(self._events(lambda: contender.call(0), 1)() for _ in range(3))
            graph = guess < SHORT_US
        if not graph:
            return lambda: self._events(lambda: contender.call(0), 1)
        calls = max(LEAST_CALLS, contender.copies)
        try:
            recorded = self._capture(contender, calls)
        except Exception as error:
            check_device("cuda", error)
            print(f"not captured, timed call by call: {describe(error)}", file=sys.stderr, flush=True)
            return lambda: self._events(lambda: contender.call(0), 1)
        recorded.replay()
        torch.cuda.synchronize()
        return lambda: self._events(recorded.replay, calls, flush=contender.copies == 1)

    def finish(self) -> None:
        """Waits for everything queued."""
        torch.cuda.synchronize()

    def _capture(self, contender: Contender, calls: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            contender.call(0)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        # torch.cuda.graph would first empty the allocator's cache, for each of some thousand graphs.
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                recorded.capture_begin()
                try:
                    for turn in range(calls):
                        contender.call(turn)
                finally:
                    recorded.capture_end()
        finally:
            gc.enable()
        torch.cuda.current_stream().wait_stream(stream)
        return recorded

    def _events(self, work: Callable[[], Any], calls: int, *, flush: bool = True) -> Callable[[], float]:
        if flush:
            for _ in range(AHEAD):
                self._flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()

        def read() -> float:
            stop.synchronize()
            return start.elapsed_time(stop) * 1e3 / calls

        return read


class _HostClock:
    """The same on the CPU, for trying the bench out."""

    def prepare(self, contender: Contender) -> Callable[[], Callable[[], float]]:
        """What it returns takes one sample."""

        def sample() -> Callable[[], float]:
            start = time.perf_counter()
            contender.call(0)
            took = (time.perf_counter() - start) * 1e6
            return lambda: took

        return sample

    def finish(self) -> None:
        """Nothing is queued."""


def _seconds(contender: Contender, turn: int, device: str) -> float:
    """Wall time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    contender.call(turn)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _quantiles(samples: list[float]) -> Timing:
    if not samples:
        return Timing(note="no sample was taken")
    values = torch.tensor(samples, dtype=torch.float64)
    p50, p20, p80 = (torch.quantile(values, torch.tensor(q, dtype=torch.float64)).item() for q in (0.5, 0.2, 0.8))
    return Timing(p50, p20, p80)
