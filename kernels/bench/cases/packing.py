"""Dense matrices of packed weights, and packing: what training, many rows and export cost in bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, copies_for
from .packed_linear import BITS, Weight

OPS = ("packing",)


def jobs() -> list[Job]:
    """A check, and the largest and the smallest layer."""
    shapes = [linear for linear in LINEARS if linear.label in ("8b.gate_up", "4b.down", "0.6b.o")]
    return [
        Job("packing", "odd shapes", 2, _check, check=True),
        *(Job("packing", s.label, 2, lambda bench, s=s: _time(bench, s), 25 + i, 4) for i, s in enumerate(shapes)),
    ]


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.packing import PackedWeight, dequantize_packed

    for bits in BITS:
        for out, inp, group in ((33, 640, 128), (7, 100, 100), (65, 96, 32)):
            weight = Weight.random(bench, out, inp, bits, group)
            packed = PackedWeight.from_codes(weight.codes, weight.scale, weight.zero, bits)
            with poisoned():
                got = dequantize_packed(packed, torch.float32)
            # Both multiply a small whole number by the scale: nothing is rounded.
            yield bench.checked("packing", f"{bits} bits {out}x{inp} g{group}", relative(got, weight.dense), 0.0)


def _time(bench: Bench, linear: Linear) -> Iterator[Row]:
    from rqat_kernels.packing import PackedWeight, dequantize_packed

    out, inp = (64, 512) if bench.small else (linear.out, linear.inp)
    for bits in BITS:
        weight = Weight.random(bench, out, inp, bits)
        packed = PackedWeight.from_codes(weight.codes, weight.scale, weight.zero, bits)
        least = packed.nbytes + 2 * out * inp
        copies = [packed.to(bench.device) for _ in range(copies_for(least))]

        def dense(i: int, copies: list = copies) -> torch.Tensor:
            return dequantize_packed(copies[i % len(copies)], torch.bfloat16)

        base = Row(
            "packing", "", "dequantize", x_name="weights", x=out * inp, config={"shape": linear.label, "bits": bits}
        )
        contenders = {"rqat": Contender(dense), "torch": Contender(plain_torch(dense), graph=False)}
        yield from bench.compare(base, contenders, baseline="torch", limits={"": (least, 0)})
    groups = out * inp // GROUP
    pack = Contender(lambda i: PackedWeight.from_codes(weight.codes, weight.scale, weight.zero, 4), graph=False)
    base = Row("packing", "", "pack", x_name="weights", x=out * inp, config={"shape": linear.label, "bits": 4})
    yield from bench.compare(base, {"rqat": pack}, limits={"": (1.5 * out * inp + 12 * groups, 0)}, rounds=5)
