"""GPTQ's column loop and its Hessians, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, LINEARS, Linear
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender

OPS = ("gptq_block", "hessian")
MAX_CODE = 3
TOKENS = 16384
ON_A_CORE = "one core of the host"


def jobs() -> list[Job]:
    """Checks, then layers of every model."""
    labels = ("8b.down", "0.6b.gate_up", "4b.qkv", "8b.gate_up")
    shapes = [next(linear for linear in LINEARS if linear.label == label) for label in labels]
    on_a_core = [linear for linear in LINEARS if linear.label in ("0.6b.gate_up", "0.6b.down")]
    return [
        Job("gptq_block", "odd shapes", 2, _check, check=True, seconds=10),
        Job("hessian", "odd shapes", 2, _check_hessian, check=True),
        *(
            Job("gptq_block", f"{s.label} on a core", 2, lambda bench, s=s: _on_a_core(bench, s), 30, 15)
            for s in on_a_core
        ),
        *(Job("hessian", s.label, 2, lambda bench, s=s: _hessian(bench, s), 15 + i, 5) for i, s in enumerate(shapes)),
        *(Job("gptq_block", s.label, 2, lambda bench, s=s: _time(bench, s), 16 + i, 12) for i, s in enumerate(shapes)),
    ]


def _inputs(bench: Bench, out: int, inp: int, group: int = GROUP) -> tuple[Any, ...]:
    """Weight, `U` with `U^T U = H^-1`, scale, zero point, group of each column."""
    from rqat_kernels.grid import fit_minmax

    weight = bench.normal(out, inp, dtype=torch.float32)
    x = bench.normal(2 * inp, inp, dtype=torch.float32) @ bench.normal(inp, inp, dtype=torch.float32, scale=inp**-0.5)
    hessian = x.T @ x / len(x)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    scale, zero = fit_minmax(weight, inp // group, MAX_CODE, symmetric=False)
    return weight, factor, scale, zero, torch.arange(inp, device=weight.device) // group


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.gptq_block import gptq_block, gptq_loop

    for out, inp, group in ((37, 384, 128), (130, 200, 40)):
        weight, factor, scale, zero, group_of = _inputs(bench, out, inp, group)
        with poisoned():
            codes, *_ = gptq_block(weight, factor, scale, zero, MAX_CODE, group_of)
        exact = [tensor.double() for tensor in (weight, factor, scale, zero)]
        expected, *_ = gptq_loop(*exact, MAX_CODE, group_of)
        wrong = (codes != expected).double().mean().item()
        # An error that flips one code is carried on to all later columns: a share of codes differs.
        yield bench.checked("gptq_block", f"{out}x{inp} g{group} codes", wrong, 0.01)


def _check_hessian(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.hessian import add_gram

    for tokens, inp in ((129, 96), (1000, 333), (5, 640)):
        x, hessian = bench.normal(tokens, inp), bench.normal(inp, inp, dtype=torch.float32)
        expected = hessian.double() + x.double().T @ x.double()
        add_gram(hessian, x)
        # Products of bfloat16 are exact in float32; the sum is not.
        yield bench.checked("hessian", f"{tokens}x{inp}", relative(hessian.triu(), expected.triu()), 1e-5)


def _hessian(bench: Bench, linear: Linear) -> Iterator[Row]:
    from rqat_kernels.hessian import add_gram

    inp, tokens = (64, 128) if bench.small else (linear.inp, TOKENS)
    x, hessian = bench.normal(tokens, inp), torch.zeros(inp, inp, device=bench.device)

    def ours(i: int) -> None:
        add_gram(hessian, x)

    contenders = {
        "rqat": Contender(ours, graph=False),
        "torch": Contender(plain_torch(ours), graph=False),
        "torch bf16 product": Contender(lambda i: x.T @ x, graph=False),
    }
    base = Row("hessian", "", "forward", x_name="I", x=inp, config={"tokens": tokens})
    limits = {"": (x.nbytes + 2 * hessian.nbytes, float(tokens) * inp * (inp + 1))}
    yield from bench.compare(base, contenders, baseline="torch", limits=limits, rounds=7)


def _time(bench: Bench, linear: Linear) -> Iterator[Row]:
    from rqat_kernels.gptq_block import gptq_block

    out, inp = (32, 256) if bench.small else (linear.out, linear.inp)
    weight, factor, scale, zero, group_of = _inputs(bench, out, inp)

    def ours(i: int) -> Any:
        return gptq_block(weight, factor, scale, zero, MAX_CODE, group_of)

    contenders = {"rqat": Contender(ours, graph=False), "torch": Contender(plain_torch(ours), samples=2)}
    base = Row("gptq_block", "", "forward", x_name="weights", x=out * inp, config={"shape": linear.label})
    limits = {"": (9.0 * out * inp + 4.0 * inp * inp, float(out) * inp * inp)}
    yield from bench.compare(base, contenders, baseline="torch", limits=limits, rounds=3)


def _on_a_core(bench: Bench, linear: Linear) -> Iterator[Row]:
    """The loop as it runs without a GPU: one thread of the host."""
    from rqat_kernels.gptq_block import gptq_block, gptq_loop

    out, inp = (32, 256) if bench.small else (linear.out, linear.inp)
    inputs = [tensor.cpu() for tensor in _inputs(bench, out, inp)]
    host = Bench("cpu", seed=bench.seed, rounds=3, small=bench.small)

    def by(solve: Callable[..., Any], samples: int) -> Contender:
        return Contender(lambda i: solve(*inputs[:4], MAX_CODE, inputs[4]), samples=samples)

    base = Row(
        "gptq_block", "", "forward", x_name="weights", x=out * inp, config={"shape": linear.label, "on": ON_A_CORE}
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from host.compare(base, {"rqat": by(gptq_block, 3), "torch": by(gptq_loop, 1)}, baseline="torch")
    finally:
        torch.set_num_threads(before)
