"""Packed linears of 2, 3 and 4 bits: few rows against their bytes and against 16 bits, then against other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import peers
from ..bench import Absent, Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, HEADS, LINEARS, ROWS, Linear
from ..table import Row
from ..timing import Contender, copies_for

OPS = ("packed_linear",)
BITS = (2, 3, 4)
PEER_ROWS = (1, 8, 16, 64)


@dataclass(frozen=True)
class Weight:
    """One weight in every form that a contender takes."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    dense: Tensor

    @classmethod
    def random(cls, bench: Bench, out: int, inp: int, bits: int, group: int = GROUP) -> Weight:
        """Codes as a minmax grid gives them for random normal weights; scales and zero points as files hold them."""
        from rqat_kernels.grid import dequantize, fit_minmax, quantize

        weight = bench.normal(out, inp, dtype=torch.float32, scale=inp**-0.5)
        scale, zero = fit_minmax(weight, inp // group, 2**bits - 1, symmetric=False)
        codes = quantize(weight, scale, zero, 2**bits - 1)
        return cls(codes, scale, zero, dequantize(codes, scale, zero))


def jobs() -> list[Job]:
    """A check; every layer and number of rows; peers on the layers of the largest model; heads."""

    def timed(linear: Linear, rows: int, order: float) -> Job:
        return Job("packed_linear", f"{linear.label} M={rows}", 1, lambda bench: _sweep(bench, linear, rows), order, 2)

    def against(linear: Linear, rows: int, order: float) -> Job:
        run = lambda bench: _peers(bench, linear, rows)  # noqa: E731
        return Job("packed_linear", f"peers {linear.label} M={rows}", 1, run, order, 15)

    found = [Job("packed_linear", "odd shapes", 1, _check, check=True, seconds=20)]
    found += [timed(linear, rows, 10 + place) for place, rows in enumerate(ROWS) for linear in LINEARS]
    largest = [linear for linear in LINEARS if linear.model == "8b"]
    # gate_up alone comes before the rest of the sweep: that is the comparison people ask for.
    found += [against(linear, rows, 13.5) for rows in PEER_ROWS for linear in largest if linear.name == "gate_up"]
    found += [against(linear, rows, 30) for rows in PEER_ROWS for linear in largest if linear.name != "gate_up"]
    found += [timed(head, rows, 28) for rows in (1, 8) for head in HEADS]
    return found


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.packed_linear import packed_linear
    from rqat_kernels.packing import PackedWeight

    shapes = ((96, 640, 128), (257, 1024, 128), (64, 2560, 128), (48, 512, 512), (1000, 1536, 128))
    for bits in BITS:
        for place, (out, inp, group) in enumerate(shapes):
            weight = Weight.random(bench, out, inp, bits, group)
            packed = PackedWeight.from_codes(weight.codes, weight.scale, weight.zero, bits)
            for rows in ((1, 7, 16), (3, 33), (8, 64), (2, 65), (5, 17, 129))[place]:
                x = bench.normal(rows, inp)
                with poisoned():
                    got = packed_linear(x, packed)
                # Sums in float32, one rounding to bfloat16 (2^-9) at the end; a dense weight in bfloat16 adds another.
                tolerance = 2.5e-3 if rows <= 64 else 4e-3
                error = relative(got, x.double() @ weight.dense.double().T)
                yield bench.checked("packed_linear", f"{bits} bits {rows}x{out}x{inp}", error, tolerance, bits=bits)


def _packed(bench: Bench, weight: Weight, bits: int, x: Tensor) -> Contender:
    from rqat_kernels.packed_linear import packed_linear
    from rqat_kernels.packing import PackedWeight

    first = PackedWeight.from_codes(weight.codes, weight.scale, weight.zero, bits)
    count = copies_for(first.nbytes)
    copies = [first, *(first.clone() for _ in range(count - 1))]
    return Contender(lambda i: packed_linear(x, copies[i % count]), count)


def _least(linear: Linear, rows: int, bits: int) -> tuple[float, float]:
    """Bytes (weights, scales and zero points in 16 bits, input, output) and operations."""
    weights = linear.out * linear.inp
    stored = weights * 2 if bits == 16 else weights * bits / 8 + 4 * weights / GROUP
    return stored + 2 * rows * (linear.inp + linear.out), 2.0 * weights * rows


def _setting(bench: Bench, linear: Linear, rows: int) -> tuple[Linear, Tensor, Row]:
    if bench.small:
        linear = Linear(linear.model, linear.name, 64, 512)
    x = bench.normal(rows, linear.inp)
    return linear, x, Row("packed_linear", "", "forward", x_name="M", x=rows, config={"shape": linear.label})


def _sweep(bench: Bench, linear: Linear, rows: int) -> Iterator[Row]:
    linear, x, base = _setting(bench, linear, rows)
    weights = {bits: Weight.random(bench, linear.out, linear.inp, bits) for bits in BITS}
    contenders: dict[str, Callable[[], Contender]] = {
        "cublas bf16": lambda: peers.cublas(weights[4].dense.to(torch.bfloat16), x)
    }
    for bits in BITS:
        contenders[f"rqat {bits} bits"] = lambda bits=bits: _packed(bench, weights[bits], bits, x)  # type: ignore[misc]
    limits = {f"rqat {bits} bits": _least(linear, rows, bits) for bits in BITS}
    limits["cublas bf16"] = _least(linear, rows, 16)
    yield from bench.compare(base, contenders, baseline="cublas bf16", limits=limits)


def _peers(bench: Bench, linear: Linear, rows: int) -> Iterator[Row]:
    linear, x, base = _setting(bench, linear, rows)
    weights = {bits: Weight.random(bench, linear.out, linear.inp, bits) for bits in BITS}
    made: dict[str, Callable[[], Contender]] = {
        "cublas bf16": lambda: peers.cublas(weights[4].dense.to(torch.bfloat16), x)
    }
    for bits in BITS:
        w = weights[bits]
        made[f"rqat {bits} bits"] = lambda w=w, bits=bits: _packed(bench, w, bits, x)  # type: ignore[misc]
        if bits != 3:
            made[f"gemlite {bits} bits"] = lambda w=w, bits=bits: peers.gemlite(  # type: ignore[misc]
                w.codes, w.scale, w.zero, bits, x
            )
        made[f"humming {bits} bits"] = lambda w=w, bits=bits: peers.humming(  # type: ignore[misc]
            w.dense.to(torch.bfloat16), bits, x
        )
    w4 = weights[4]
    made["torch int4"] = lambda: peers.int4(w4.codes, w4.scale, w4.zero, x)
    ready, errors = _with_errors(made, {f"{bits} bits": w.dense for bits, w in weights.items()}, x)
    limits = {name: _least(linear, rows, _bits(name)) for name in ready}
    base = Row(**{**base.__dict__, "config": {"shape": linear.label, "with": "peers"}})
    yield from bench.compare(base, ready, baseline="cublas bf16", limits=limits, errors=errors)


def _bits(name: str) -> int:
    return {"cublas bf16": 16, "torch int4": 4}.get(name) or int(name.split()[1])


def _with_errors(
    made: Mapping[str, Callable[[], Contender]], dense: Mapping[str, Tensor], x: Tensor
) -> tuple[dict[str, Contender | Callable[[], Contender]], dict[str, float]]:
    """The contenders, made, and their errors; a wrong one is not timed. Humming has its own grid: no error."""
    ready: dict[str, Contender | Callable[[], Contender]] = {}
    errors: dict[str, float] = {}
    for name, make in made.items():
        try:
            contender = make()
            if not name.startswith("humming"):
                weight = dense.get(name.partition(" ")[2], dense["4 bits"])
                errors[name] = relative(contender.call(0), x.double() @ weight.double().T)
                if not errors[name] < 3e-2:
                    raise Absent(f"wrong here: relative error {errors[name]:.2g}")
            ready[name] = contender
        except Exception as error:
            ready[name] = _raising(error)
    return ready, errors


def _raising(error: Exception) -> Callable[[], Contender]:
    def make() -> Contender:
        raise error

    return make
