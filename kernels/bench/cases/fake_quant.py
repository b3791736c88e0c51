"""Fake quantization with autograd, of weights and of activations, against eager and compiled torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..table import Row
from ..timing import Contender, copies_for

OPS = ("fake_quant",)
MAX_CODE = 3


def jobs() -> list[Job]:
    """A check; the largest layer, forward and backward; activations; then against compiled torch."""
    largest = next(linear for linear in LINEARS if linear.label == "8b.gate_up")
    small = next(linear for linear in LINEARS if linear.label == "0.6b.gate_up")
    return [
        Job("fake_quant", "odd shapes", 2, _check, check=True),
        Job("fake_quant", largest.label, 2, lambda bench: _weights(bench, largest), 14, 6),
        Job("fake_quant", small.label, 2, lambda bench: _weights(bench, small), 14.5, 5),
        Job("fake_quant", "activations", 2, _activations, 34, 5),
        Job("fake_quant", "compiled", 2, lambda bench: _weights(bench, largest, compiled=True), 55, 15),
    ]


def _inputs(bench: Bench, out: int, inp: int, group: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    from rqat_kernels.grid import fit_minmax

    weight = bench.normal(out, inp, dtype=torch.float32)
    scale, zero = fit_minmax(0.8 * weight, inp // group, MAX_CODE, symmetric=False)
    zero += bench.normal(*zero.shape, dtype=torch.float32, scale=0.2)
    return weight.to(dtype).requires_grad_(), scale.requires_grad_(), zero.requires_grad_()


def _eager(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The formula with straight-through rounding, left to autograd: the usual way."""
    grouped = weight.float().view(*scale.shape, -1)
    s, z = scale[..., None], zero[..., None]
    z = z + (z.round() - z).detach()
    z = z.clamp(0, MAX_CODE)
    u = grouped / s
    q = (u + (u.round() - u).detach() + z).clamp(0, MAX_CODE)
    return ((q - z) * s).view(weight.shape).to(weight.dtype)


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.fake_quant import fake_quant, fake_quant_activations, reference

    for out, inp, group in ((37, 256, 128), (65, 96, 32)):
        inputs = _inputs(bench, out, inp, group, torch.float32)
        upstream = bench.normal(out, inp, dtype=torch.float32)
        with poisoned():
            got = fake_quant(*inputs, MAX_CODE)
            gradients = torch.autograd.grad(got, inputs, upstream)
        exact = [tensor.detach().double() for tensor in inputs]
        wanted = reference.fake_quant(*exact, MAX_CODE)
        expected = reference.fake_quant_backward(upstream.double(), *exact, MAX_CODE)
        error = max(relative(g, e) for g, e in zip((got.detach(), *gradients), (wanted, *expected), strict=True))
        # float32 sums of a group, some 1e-7; a quotient on the border of two codes would show as 1e-2.
        yield bench.checked("fake_quant", f"{out}x{inp} g{group}", error, 1e-4)
    for rows, inp, bits in ((5, 1000, 4), (33, 256, 8)):
        x = bench.normal(rows, inp, dtype=torch.float32)
        with poisoned():
            got = fake_quant_activations(x, bits)
        error = relative(got, reference.fake_quant_activations(x.double(), bits, None, symmetric=False))
        # Half a step of a few values that lie between two codes, which float32 may round the other way.
        yield bench.checked("fake_quant", f"activations {rows}x{inp} {bits} bits", error, 5e-3)


def _weights(bench: Bench, linear: Linear, *, compiled: bool = False) -> Iterator[Row]:
    from rqat_kernels.fake_quant import fake_quant

    out, inp = (64, 256) if bench.small else (linear.out, linear.inp)
    least = 10 * out * inp
    count = copies_for(least)
    copies = [(_inputs(bench, out, inp, GROUP, torch.bfloat16), bench.normal(out, inp)) for _ in range(count)]

    def both(forward: Callable[..., Any]) -> Contender:
        def call(i: int) -> Any:
            inputs, upstream = copies[i % count]
            return torch.autograd.grad(forward(*inputs), inputs, upstream)

        # A small layer is captured, since calling torch takes longer than the work.
        return Contender(call, count, graph=count > 1)

    contenders = {"rqat": both(lambda *tensors: fake_quant(*tensors, MAX_CODE)), "torch": both(_eager)}
    if compiled:
        contenders["compile"] = both(torch.compile(_eager, dynamic=False))
    base = Row("fake_quant", "", "full", x_name="weights", x=out * inp, config={"shape": linear.label})
    # Forward reads and writes 16 bits, backward reads weight and gradient and writes a gradient.
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (float(least), 0.0)}, rounds=9)


def _activations(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.fake_quant import fake_quant_activations, reference

    rows, inp = (32, 256) if bench.small else (16384, 4096)
    x = bench.normal(rows, inp)
    contenders = {
        "rqat": Contender(lambda i: fake_quant_activations(x, 8), graph=False),
        "torch": Contender(lambda i: reference.fake_quant_activations(x, 8, None, symmetric=False), graph=False),
    }
    base = Row("fake_quant", "", "activations", x_name="tokens", x=rows, config={"width": inp, "bits": 8})
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (2.0 * x.nbytes, 0.0)}, rounds=9)
