"""Fitting a grid and rounding to it, per layer: the share of GPTQ, of training and of export it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..bench import Bench, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender

OPS = ("grid",)
MAX_CODE = 3


def jobs() -> list[Job]:
    """A check and one layer."""
    largest = next(linear for linear in LINEARS if linear.label == "8b.down")
    return [
        Job("grid", "odd shapes", 2, _check, check=True),
        Job("grid", largest.label, 2, lambda bench: _time(bench, largest), 15.5, 5),
    ]


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.grid import dequantize, fit_minmax, quantize

    weight = bench.normal(37, 384, dtype=torch.float32)
    scale, zero = fit_minmax(weight, 3, MAX_CODE, symmetric=False)
    got = dequantize(quantize(weight, scale, zero, MAX_CODE), scale, zero)
    exact = weight.double().view(37, 3, -1)
    s, z = scale.double()[..., None], zero.double()[..., None]
    expected = ((torch.round(exact / s) + z).clamp(0, MAX_CODE) - z) * s
    # float32 divides correctly rounded; a tie of the float32 quotient that is none in float64 may go the other way.
    yield bench.checked("grid", "37x384 g128", relative(got, expected.view(37, 384)), 1e-6)


def _time(bench: Bench, linear: Linear) -> Iterator[Row]:
    from rqat_kernels import grid

    out, inp = (64, 512) if bench.small else (linear.out, linear.inp)
    weight = bench.normal(out, inp, dtype=torch.float32)
    groups = inp // GROUP
    scale, zero = grid.fit_minmax(weight, groups, MAX_CODE, symmetric=False)
    codes = grid.quantize(weight, scale, zero, MAX_CODE)
    half = torch.bfloat16
    work: dict[str, tuple[Callable[[int], Any], int]] = {
        "quantize": (lambda i: grid.quantize(weight, scale, zero, MAX_CODE), 5 * out * inp),
        "dequantize": (lambda i: grid.dequantize(codes, scale, zero, half), 3 * out * inp),
        "requantize": (lambda i: grid.requantize(weight, scale, zero, MAX_CODE, half), 6 * out * inp),
        "fit_minmax": (lambda i: grid.fit_minmax(weight, groups, MAX_CODE, symmetric=False), 4 * out * inp),
        "fit_clip": (lambda i: grid.fit_clip(weight, groups, MAX_CODE, symmetric=False), 4 * out * inp),
    }
    for mode, (call, least) in work.items():
        base = Row("grid", "", mode, x_name="weights", x=out * inp, config={"shape": linear.label})
        contenders = {
            "rqat": Contender(call, graph=False),
            "torch": Contender(plain_torch(call), graph=False),
        }
        yield from bench.compare(base, contenders, baseline="torch", limits={"": (least, 0)}, rounds=7)
