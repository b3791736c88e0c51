"""Head and divergence: time over the matrix products it cannot do without, and memory beyond inputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..bench import Bench, poisoned, relative
from ..peers import library
from ..registry import Job
from ..shapes import VOCABULARY
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, describe, peak_megabytes

OPS = ("linear_kl",)

PAIRS = ((1024, 2560), (2560, 4096), (4096, 4096))
"""Widths of student and teacher."""


def jobs() -> list[Job]:
    """A check; 8,192 tokens at three widths, with a frozen head, as `kd` runs it, and with a trained one; then other
    lengths; the other divergences; compiled torch."""

    def timed(tokens: int, widths: tuple[int, int], order: float, seconds: float, **options: Any) -> Job:
        variant = " ".join(name if value is True else str(value) for name, value in options.items())
        label = f"{tokens} tokens, {widths[0]} and {widths[1]} wide {variant}".rstrip()
        run = lambda bench: _time(bench, tokens, *widths, **options)  # noqa: E731
        return Job("linear_kl", label, 2, run, order, seconds)

    return [
        Job("linear_kl", "odd shapes", 2, _check, check=True),
        *(timed(8192, widths, 8 + place, 5, frozen=True) for place, widths in enumerate(PAIRS)),
        *(timed(8192, widths, 8.5 + place, 10) for place, widths in enumerate(PAIRS)),
        *(timed(tokens, PAIRS[0], 30 + place, 8) for place, tokens in enumerate((4096, 16384, 1024))),
        *(timed(8192, PAIRS[0], 50 + place, 8, divergence=kind) for place, kind in enumerate(("jsd", "reverse"))),
        timed(8192, PAIRS[0], 70, 45, compiled=True),
    ]


def _inputs(bench: Bench, tokens: int, width: int, teacher: int, vocabulary: int) -> tuple[Tensor, ...]:
    return (
        bench.normal(tokens, width).requires_grad_(),
        bench.normal(vocabulary, width, scale=width**-0.5).requires_grad_(),
        bench.normal(tokens, teacher),
        bench.normal(vocabulary, teacher, scale=teacher**-0.5),
    )


def _whole(student: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, divergence: str) -> Tensor:
    """The plain way: all logits at once."""
    log_q = torch.log_softmax((student @ weight.T).float(), -1)
    with torch.no_grad():
        log_p = torch.log_softmax((teacher @ teacher_weight.T).float(), -1)
    if divergence == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    if divergence == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, device=log_q.device))
    of_p, of_q = (log_p.exp() * (log_p - log_m)).sum(-1), (log_q.exp() * (log_q - log_m)).sum(-1)
    return (0.5 * of_p + 0.5 * of_q).mean()


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.linear_kl import linear_kl

    for divergence in ("forward", "reverse", "jsd"):
        inputs = _inputs(bench, 37, 64, 96, 1031)
        with poisoned():
            loss = linear_kl(*inputs, divergence=divergence)
            got = torch.autograd.grad(loss, inputs[:2])
        exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
        wanted = _exact(exact, divergence)
        gradients = torch.autograd.grad(wanted, exact[:2])
        # The logits are rounded to bfloat16: 2^-9 of each, which the divergence of near distributions magnifies.
        yield bench.checked("linear_kl", f"{divergence} loss", relative(loss.detach(), wanted.detach()), 5e-3)
        error = max(relative(g, e) for g, e in zip(got, gradients, strict=True))
        yield bench.checked("linear_kl", f"{divergence} gradients", error, 1.5e-2)


def _exact(inputs: list[Tensor], divergence: str) -> Tensor:
    student, weight, teacher, teacher_weight = inputs
    log_q = torch.log_softmax(student @ weight.T, -1)
    log_p = torch.log_softmax(teacher @ teacher_weight.T, -1)
    if divergence == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    if divergence == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    log_m = (log_p.exp() / 2 + log_q.exp() / 2).log()
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return terms.sum(-1).mean() / 2


def _time(
    bench: Bench,
    tokens: int,
    width: int,
    teacher: int,
    *,
    divergence: str = "forward",
    frozen: bool = False,
    compiled: bool = False,
) -> Iterator[Row]:
    from rqat_kernels.linear_kl import linear_kl

    vocabulary = 1000 if bench.small else VOCABULARY
    tokens = 32 if bench.small else tokens
    inputs = _inputs(bench, tokens, width, teacher, vocabulary)
    inputs[1].requires_grad_(not frozen)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]

    def trained(loss: Callable[[], Tensor]) -> Contender:
        return Contender(lambda i: torch.autograd.grad(loss(), wanted), graph=False)

    def liger() -> Contender:
        beta = {"forward": 0.0, "reverse": 1.0, "jsd": 0.5}[divergence]
        module = library("liger_kernel.transformers.fused_linear_jsd").LigerFusedLinearJSD(jsd_beta=beta)
        return trained(lambda: module(*inputs, None))

    ours = trained(lambda: linear_kl(*inputs, divergence=divergence))
    contenders: dict[str, Any] = {"rqat": ours}
    if compiled:
        whole = torch.compile(_whole, dynamic=False)
        contenders["compile"] = trained(lambda: whole(*inputs, divergence))
    else:
        if not frozen:  # what the CPU runs; up to 1.3 s here, and a frozen head shows nothing new
            contenders["torch chunks"] = Contender(plain_torch(ours.call), graph=False)
        contenders["torch"] = trained(lambda: _whole(*inputs, divergence))
        contenders["liger"] = liger
    config = {"divergence": divergence, "width": width, "teacher": teacher} | ({"head": "frozen"} if frozen else {})
    flops = 2.0 * tokens * vocabulary * ((1 + len(wanted)) * width + teacher)
    least = sum(tensor.nbytes for tensor in (*inputs, *wanted))
    base = Row("linear_kl", "", "full", x_name="tokens", x=tokens, config=config)
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (least, flops)}, rounds=7)
    if bench.device == "cuda":
        yield from _memory(base, contenders)


def _memory(base: Row, contenders: dict[str, Any]) -> Iterator[Row]:
    from dataclasses import replace

    for name, contender in contenders.items():
        row = replace(base, provider=name, metric="memory", unit="MB")
        try:
            made = contender if isinstance(contender, Contender) else contender()
            yield replace(row, p50=peak_megabytes(lambda made=made: made.call(0)))
        except Exception as error:
            yield replace(row, note=describe(error))
