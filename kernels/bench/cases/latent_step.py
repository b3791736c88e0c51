"""Straight-through gradients of latents, scales and zero points, per layer: bytes are all that counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, copies_for

OPS = ("latent_step",)
BITS = 2


def jobs() -> list[Job]:
    """A check, and every distinct size of layer."""
    shapes = sorted(LINEARS, key=lambda linear: -linear.out * linear.inp)[::4]
    timed = [
        Job(
            "latent_step",
            linear.label,
            2,
            lambda bench, linear=linear: _time(bench, linear),
            12 + place / 10,
            seconds=4,
        )
        for place, linear in enumerate(shapes)
    ]
    compiled = Job("latent_step", "compiled", 2, lambda bench: _time(bench, shapes[0], compiled=True), 13.5, seconds=12)
    return [Job("latent_step", "odd shapes", 2, _check, check=True), *timed, compiled]


def _inputs(bench: Bench, out: int, inp: int, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from rqat_kernels.grid import snap_scale

    grad = bench.normal(out, inp)
    weight = bench.normal(out, inp, dtype=torch.float32)
    scale = snap_scale(bench.normal(out, inp // group, dtype=torch.float32).abs_().add_(0.5))
    return grad, weight, scale, bench.integers(2**BITS, out, inp // group, dtype=torch.float32)


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.latent_step import latent_step
    from rqat_kernels.latent_step.reference import latent_step as reference

    for out, inp, group in ((37, 256, 128), (130, 96, 32), (1, 128, 128)):
        inputs = _inputs(bench, out, inp, group)
        with poisoned():
            got = latent_step(*inputs, 2**BITS - 1)
        expected = reference(*(tensor.double() for tensor in inputs), 2**BITS - 1)
        error = max(relative(g, e) for g, e in zip(got, expected, strict=True))
        # Sums of a group in float32 against float64: some 1e-7 each, more where terms cancel.
        yield bench.checked("latent_step", f"{out}x{inp} g{group}", error, 1e-5)


def _time(bench: Bench, linear: Linear, *, compiled: bool = False) -> Iterator[Row]:
    from rqat_kernels.latent_step import latent_step
    from rqat_kernels.latent_step.reference import latent_step as reference

    out, inp = (64, 256) if bench.small else (linear.out, linear.inp)
    least = 10 * out * inp + 16 * out * inp // GROUP  # D in 16 bits, w and gw in 32; s, z, gs, gz
    count = min(copies_for(least), 16)
    inputs = [_inputs(bench, out, inp) for _ in range(count)]

    def ours(i: int) -> tuple[Tensor, ...]:
        return latent_step(*inputs[i % count], 2**BITS - 1)

    contenders = {"rqat": Contender(ours, count), "torch": Contender(plain_torch(ours), count)}
    if compiled:
        fused = torch.compile(reference, dynamic=False)
        contenders["compile"] = Contender(lambda i: fused(*inputs[i % count], 2**BITS - 1), count)
    base = Row("latent_step", "", "backward", x_name="weights", x=out * inp, config={"shape": linear.label})
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (least, 0)})
