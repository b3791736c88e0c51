"""What this device can do at best, measured in the same run: the limits everything else is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .bench import Bench
from .table import Row
from .timing import Contender, Timing, check_device, describe, interleave

STREAM_BYTES = 1 << 31
SIZE = 8192
LAUNCHES = 100


def measure(bench: Bench) -> Iterator[Row]:
    """Rows for copy, read, matrix products and launches; fills `bench.ceilings`."""
    size, stream = (256, 1 << 20) if bench.small else (SIZE, STREAM_BYTES)
    yield from _memory(bench, stream)
    rates = [bench.ceilings.get(name, 0.0) for name in ("copy", "read")]
    bench.ceilings["bandwidth"] = max(rates)
    kinds = (
        (("bf16", torch.bfloat16), ("tf32", torch.float32)) if bench.device == "cuda" else (("bf16", torch.float32),)
    )
    for name, dtype in kinds:
        a, b = bench.normal(size, size, dtype=dtype), bench.normal(size, size, dtype=dtype)
        out = torch.empty_like(a)
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        yield from _rate(bench, name, lambda i, a=a, b=b, out=out: torch.mm(a, b, out=out), 2 * size**3, "TFLOP/s")
        torch.backends.cuda.matmul.allow_tf32 = before
    if bench.device == "cuda":
        yield from _guarded(bench, "launch", lambda: _launches(bench))


def _memory(bench: Bench, n_bytes: int) -> Iterator[Row]:
    source = bench.normal(n_bytes // 4, dtype=torch.float32)
    target = torch.empty_like(source)
    yield from _rate(bench, "copy", lambda i: target.copy_(source), 2 * source.nbytes, "TB/s")
    if bench.device == "cuda":
        yield from _guarded(bench, "read", lambda: _read(bench, source))


def _rate(bench: Bench, name: str, call: Callable[..., Any], amount: float, unit: str) -> Iterator[Row]:
    """A rate in 10^12 per second."""
    timing = interleave({name: Contender(call, graph=False)}, device=bench.device, rounds=9)[name]
    yield _row(name, timing, amount, unit)
    if timing.ok:
        bench.ceilings[name] = amount / timing.p50 * 1e6


def _row(name: str, timing: Timing, amount: float, unit: str) -> Row:
    rate = [amount / t / 1e6 if t else None for t in (timing.p50, timing.p80, timing.p20)]
    return Row(
        "ceiling",
        "device",
        mode=name,
        metric="rate",
        unit=unit,
        p50=rate[0],
        p20=rate[1],
        p80=rate[2],
        note=timing.note,
    )


def _read(bench: Bench, source: torch.Tensor) -> Iterator[Row]:
    from .probes import read_stream

    yield from _rate(bench, "read", lambda i: read_stream(source), source.nbytes, "TB/s")


def _launches(bench: Bench) -> Iterator[Row]:
    """Microseconds of a kernel that does nothing: launched by itself, in a graph, in a graph with early starts."""
    from .probes import empty

    spot = torch.zeros(1024, device=bench.device)

    def many(i: int, early: bool) -> None:
        for _ in range(LAUNCHES):
            empty(spot, early=early)

    ways = {
        "eager": Contender(lambda i: many(i, False), graph=False),
        "graph": Contender(lambda i: many(i, False), graph=True),
        "graph+early": Contender(lambda i: many(i, True), graph=True),
    }
    for name, timing in interleave(ways, rounds=7).items():
        values = [t / LAUNCHES if t else None for t in (timing.p50, timing.p20, timing.p80)]
        yield Row("ceiling", name, mode="launch", p50=values[0], p20=values[1], p80=values[2], note=timing.note)


def _guarded(bench: Bench, name: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    try:
        yield from rows()
    except Exception as error:
        check_device(bench.device, error)
        yield Row("ceiling", "device", mode=name, note=describe(error))
