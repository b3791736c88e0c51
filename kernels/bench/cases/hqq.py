"""HQQ's fit of a layer's zero points: what the quantizer `hqq` spends its time on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..bench import Bench, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender

OPS = ("hqq",)
MAX_CODE = 7


def jobs() -> list[Job]:
    """A check and one layer."""
    largest = next(linear for linear in LINEARS if linear.label == "8b.down")
    return [
        Job("hqq", "odd shapes", 2, _check, check=True),
        Job("hqq", largest.label, 2, lambda bench: _time(bench, largest), 15.6, 5),
    ]


def _check(bench: Bench) -> Iterator[Row]:
    """One iteration with real zero points, where nothing is chosen, against the formula in float64."""
    from rqat_kernels.grid import fit_minmax
    from rqat_kernels.hqq import fit_hqq

    weight = bench.normal(37, 288, dtype=torch.float32)
    scale, zero = fit_minmax(weight, 3, MAX_CODE, symmetric=False)
    zero = zero + 0.25  # off by enough that one step from here is always taken
    got = fit_hqq(weight, scale, zero, MAX_CODE, whole=False, iterations=1)
    at = weight.double().view(37, 3, -1) / scale.double()[..., None] + zero.double()[..., None]
    error = at - at.round().clamp(0, MAX_CODE)
    kept = error.sign() * (error.abs() - error.abs().pow(-0.3) / 10).clamp(min=0)
    stepped = zero.double() - (error - kept).mean(-1)
    moved = got != zero
    # float32 errors of weights near a border between codes may round to the other side of it.
    yield bench.checked("hqq", "37x288 g96", relative(got[moved], stepped[moved]), 1e-3)


def _time(bench: Bench, linear: Linear) -> Iterator[Row]:
    from rqat_kernels.grid import fit_minmax
    from rqat_kernels.hqq import fit_hqq

    out, inp = (64, 512) if bench.small else (linear.out, linear.inp)
    weight = bench.normal(out, inp, dtype=torch.float32)
    scale, zero = fit_minmax(weight, inp // GROUP, MAX_CODE, symmetric=False)

    def ours(i: int) -> Any:
        return fit_hqq(weight, scale, zero, MAX_CODE)

    base = Row("hqq", "", "fit", x_name="weights", x=out * inp, config={"shape": linear.label})
    contenders = {"rqat": Contender(ours, graph=False), "torch": Contender(plain_torch(ours), graph=False)}
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (4.0 * out * inp, 0)}, rounds=7)
