"""Head and divergence from a cache of the teacher's likeliest tokens: time over matrix products, and memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import VOCABULARY
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, describe, peak_megabytes

OPS = ("topk_kl",)
K = 64


def jobs() -> list[Job]:
    """A check and two widths."""
    return [
        Job("topk_kl", "odd shapes", 2, _check, check=True),
        *(
            Job("topk_kl", f"{w} wide", 2, lambda b, w=w: _time(b, 8192, w), 32 + i, 8)
            for i, w in enumerate((1024, 4096))
        ),
    ]


def _inputs(bench: Bench, tokens: int, width: int, vocabulary: int, k: int) -> tuple[Tensor, ...]:
    """Hidden states, head, and a teacher whose ids never repeat within a row."""
    student = bench.normal(tokens, width).requires_grad_()
    weight = bench.normal(vocabulary, width, scale=width**-0.5).requires_grad_()
    start = bench.integers(vocabulary, tokens, 1)
    ids = (start + torch.arange(k, device=bench.device) * (vocabulary // k)) % vocabulary
    logp = torch.log_softmax(bench.normal(tokens, k, dtype=torch.float32), -1) - 0.1
    return student, weight, ids.int(), logp.to(torch.bfloat16)


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.topk_kl import linear_topk_kl

    for tokens, width, vocabulary, k in ((37, 64, 1031, 8), (5, 96, 517, 64)):
        inputs = _inputs(bench, tokens, width, vocabulary, k)
        with poisoned():
            loss = linear_topk_kl(*inputs)
            got = torch.autograd.grad(loss, inputs[:2])
        exact = [t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t for t in inputs]
        wanted = linear_topk_kl(*exact)  # float64 is done in plain torch
        gradients = torch.autograd.grad(wanted, exact[:2])
        # Logits and their gradients are rounded to bfloat16: 2^-9 each.
        error = max(relative(g, e) for g, e in zip(got, gradients, strict=True))
        yield bench.checked("topk_kl", f"{tokens}x{vocabulary} loss", relative(loss.detach(), wanted.detach()), 5e-3)
        yield bench.checked("topk_kl", f"{tokens}x{vocabulary} gradients", error, 1.5e-2)


def _time(bench: Bench, tokens: int, width: int) -> Iterator[Row]:
    from rqat_kernels.topk_kl import linear_topk_kl

    tokens, vocabulary = (32, 1000) if bench.small else (tokens, VOCABULARY)
    inputs = _inputs(bench, tokens, width, vocabulary, K)

    def ours(i: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear_topk_kl(*inputs), inputs[:2])

    contenders = {"rqat": Contender(ours, graph=False), "torch chunks": Contender(plain_torch(ours), graph=False)}
    least = sum(tensor.nbytes for tensor in inputs) + inputs[0].nbytes + inputs[1].nbytes
    base = Row("topk_kl", "", "full", x_name="tokens", x=tokens, config={"width": width, "k": K})
    limits = {"": (float(least), 6.0 * tokens * vocabulary * width)}
    yield from bench.compare(base, contenders, baseline="torch chunks", limits=limits, rounds=5)
    if bench.device == "cuda":
        row = Row("topk_kl", "rqat", "full", "memory", "MB", "tokens", x=tokens, config=base.config)
        try:
            row.p50 = peak_megabytes(lambda: ours(0))
        except Exception as error:
            row.note = describe(error)
        yield row
