"""Divergence from a top-k teacher on a GPU: products by cuBLAS, four Triton kernels for the rows between them.

    take        moves the support's logits out of the row, leaving `PADDING`
    statistics  that of `linear_kl`: log-sum-exp of what is left, the tail
    tail        writes q (q_tail - p_tail) / q_tail, the gradient outside the support, over the whole row
    support     writes q - p into the support's places, and the row's loss

Formulas are those of `reference.py`; logits have the dtype of the hidden states, the rest is float32. A row of logits
is read twice and written once; of the teacher there are `6 k` bytes a token.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import interpreted
from ..linear_kl import rows
from ..linear_kl.kernel import LOG2E, Plan, WeightGradient, hidden_gradient, logits_buffer, plan_for
from ..linear_kl.rows import LN2, PADDING, VECTOR, combined, exp2, load_end, load_tile, span

NONE = tl.constexpr(0)


@triton.jit
def take(student, ids, kept, stride, k, BLOCK: tl.constexpr):
    """Program `row`: `kept (rows, k)` float32 gets the support's logits."""
    row = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < k
    columns = tl.load(ids + row * k + place, mask=inside, other=0)
    mine = student + row.to(tl.int64) * stride
    tl.store(kept + row * k + place, tl.load(mine + columns, mask=inside, other=0.0).to(tl.float32), mask=inside)
    tl.debug_barrier()
    tl.store(mine + columns, (columns * 0.0 + PADDING).to(student.dtype.element_ty), mask=inside)


@triton.jit
def masses(partial, kept, logp, row, k, c, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Of a row: log2 of the tail's and of all normalizers, the tail's p, and log2 q and log2 p of the support."""
    place = tl.arange(0, BLOCK)
    inside = place < k
    lse_tail, _, _, _ = combined(partial, row, c, NONE, False, SPLITS)
    x = tl.load(kept + row * k + place, mask=inside, other=PADDING) * c
    log_p = tl.load(logp + row * k + place, mask=inside, other=PADDING).to(tl.float32) * (1.0 / LN2)
    top = tl.maximum(tl.max(x, 0), lse_tail)
    lse = top + tl.log2(tl.sum(tl.exp2(x - top), 0) + tl.exp2(lse_tail - top))
    mass = tl.sum(tl.exp2(log_p), 0)
    log_p -= tl.log2(tl.maximum(mass, 1.0))
    return lse_tail, lse, tl.maximum(1.0 - mass, 0.0), x - lse, log_p


@triton.jit(do_not_specialize=["tiles", "tokens", "k"])
def tail(
    student, kept, logp, partial, inverse, stride, tiles, tokens, k, c, tau,
    SPLITS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Program `row * SPLITS + split`: the gradient outside the support over its part of the row, 0 on padding."""
    row, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    TILE: tl.constexpr = LANES * VECTOR
    mine = student + row.to(tl.int64) * stride
    inside = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    lse_tail, lse, p_tail, _, _ = masses(partial, kept, logp, row, k, c, SPLITS, BLOCK)
    factor = (tl.exp2(lse_tail - lse) - p_tail) * tau * tl.load(inverse)
    first, whole, some, last = span(split, tiles, tokens, TILE, SPLITS)
    for tile in range(first, whole):
        columns = tile * TILE + inside
        grad = exp2(load_tile(mine, columns) * c - lse_tail, FAST) * factor
        tl.store(mine + columns, grad.to(student.dtype.element_ty))
    if whole < some:
        columns = whole * TILE + inside
        grad = exp2(load_end(mine, columns, tokens, stride) * c - lse_tail, FAST) * factor
        grad = tl.where(columns < tokens, grad, 0.0)
        tl.store(mine + columns, grad.to(student.dtype.element_ty), mask=columns < stride)
    for tile in range(some, last):
        columns = tile * TILE + inside
        nothing = tl.zeros((LANES, VECTOR), student.dtype.element_ty)
        tl.store(mine + columns, nothing, mask=columns < stride)


@triton.jit(do_not_specialize=["k"])
def support(
    student, ids, kept, logp, partial, inverse, losses, stride, k, c, tau,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program `row`: the gradient on the support, and the loss, not divided yet."""
    row = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < k
    lse_tail, lse, p_tail, log_q, log_p = masses(partial, kept, logp, row, k, c, SPLITS, BLOCK)
    p = tl.exp2(log_p)
    grad = (tl.exp2(log_q) - p) * tau * tl.load(inverse)
    columns = tl.load(ids + row * k + place, mask=inside, other=0)
    tl.store(student + row.to(tl.int64) * stride + columns, grad.to(student.dtype.element_ty), mask=inside)
    value = tl.sum(tl.where(inside, p * (log_p - log_q), 0.0), 0)
    value += tl.where(p_tail > 0.0, p_tail * (tl.log2(tl.maximum(p_tail, 1e-38)) - (lse_tail - lse)), 0.0)
    tl.store(losses + row, tl.where(value < 0.0, 0.0, value) * (LN2 * tau * tau))


def linear_topk_kl(
    student: Tensor,
    weight: Tensor,
    ids: Tensor,
    logp: Tensor,
    inverse: Tensor,
    *,
    temperature: float,
    tokens: int,
    need_student: bool,
    need_weight: bool,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss (float32) and the gradients asked for, of the dtype of what they belong to.

    Args:
        student: `(T, d)` float32, bfloat16 or float16; the others as in `reference.linear_topk_kl`.
        inverse: `(1,)` float32, one over the divisor, on the same device.
        plan: for tests and benchmarks; None is that of `linear_kl`. There is no second buffer of logits.
    """
    count, k, device = len(student), ids.shape[1], student.device
    grad_student = torch.empty(student.shape, dtype=student.dtype, device=device) if need_student else None
    losses = torch.empty(count, dtype=torch.float32, device=device)
    width = len(weight)
    if not count:
        return losses.sum(), grad_student, torch.zeros_like(weight) if need_weight else None
    itemsize = student.element_size()
    plan = plan_for(device, count, width, itemsize) if plan is None else plan.sized(count, width, itemsize)
    ids, logp = ids.to(torch.int32).contiguous(), logp.contiguous()
    buffer = logits_buffer(plan.student_tokens, width, student)
    stride, tiles = buffer.stride(0), -(-width // (8 * plan.lanes))
    kept = torch.empty(plan.student_tokens, k, dtype=torch.float32, device=device)
    partial = torch.empty(plan.student_tokens, plan.splits, 8, dtype=torch.float32, device=device)
    sums = WeightGradient(weight, width, -(-count // plan.student_tokens), plan.few) if need_weight else None
    tau, c = temperature, LOG2E / temperature
    block = triton.next_power_of_2(k)
    shape = {"SPLITS": plan.splits, "LANES": plan.lanes, "FAST": not interpreted(), "num_warps": plan.warps}
    with torch.cuda.device(device) if student.is_cuda else contextlib.nullcontext():
        for start in range(0, count, plan.student_tokens):
            stop = min(start + plan.student_tokens, count)
            n, logits = stop - start, buffer[: stop - start]
            grad, chosen, log_p = logits[:, :width], ids[start:stop], logp[start:stop]
            torch.mm(student[start:stop], weight.T, out=grad)
            take[(n,)](logits, chosen, kept, stride, k, BLOCK=block, num_warps=4)
            rows.statistics[(n * plan.splits,)](
                logits, logits, losses, partial, stride, stride, tiles, tokens, c,
                KIND=0, LABELS=False, PLAIN=False, **shape,
            )  # fmt: skip
            tail[(n * plan.splits,)](
                logits, kept, log_p, partial, inverse, stride, tiles, tokens, k, c, tau, BLOCK=block, **shape
            )
            support[(n,)](
                logits, chosen, kept, log_p, partial, inverse, losses[start:stop], stride, k, c, tau,
                SPLITS=plan.splits, BLOCK=block, num_warps=4,
            )  # fmt: skip
            if grad_student is not None:
                hidden_gradient(grad, weight, grad_student[start:stop], plan.sum_parts)
            if sums is not None:
                sums.add(grad, student[start:stop])
    return (losses.sum() * inverse).squeeze(0), grad_student, None if sums is None else sums.result()
