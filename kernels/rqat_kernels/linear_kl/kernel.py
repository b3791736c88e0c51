"""Linear layer plus divergence on a GPU: matrix products of chunks of tokens by cuBLAS, rows of logits by Triton.

    for each chunk of `student_tokens`:   S = h W^T                          into one buffer
        for each `teacher_tokens` of it:  T = h' W'^T                        into another
                                          statistics(S, T), gradient over S  (`rows.py`)
        dh = S W,  dW += S^T h

Formulas are those of `reference.py`. Logits are of the hidden states' dtype, everything between them and the gradient
is float32. Two chunk lengths, because the products with S want many tokens (dW is read and written once per chunk)
while the teacher's logits are only looked at: for the same memory S can be longer.

Nothing waits for the GPU. Memory beside the gradients: `(student_tokens + teacher_tokens) * V` logits and 64 floats a
token; with a weight gradient of more than `few` chunks, also its float32 sum.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from torch import Tensor

from ..dispatch import interpreted, measured
from . import rows

LOG2E = 1.4426950408889634

MEMORY = 0.47e9
"""Bytes of both buffers together when nothing was measured: 1,024 and 512 tokens of 151,936 logits in bfloat16."""


@dataclass(frozen=True)
class Plan:
    """How work is cut up. `measured("linear_kl", device)` may give any of these by name.

    Attributes:
        student_tokens, teacher_tokens: rows of the two buffers of logits; 0 is what fits `MEMORY`.
        splits: programs for a row of logits, a power of 2.
        lanes: a program takes `8 * lanes` logits at a time.
        warps: of a program of the row kernels; fewer where there are fewer lanes than threads.
        rows: how many rows the row kernels take at a time, 0 for all of a buffer. Of few rows the cache still holds
            the logits when the second pass reads them, for more launches.
        sum_parts: parts of the vocabulary that dh is summed from, when the vocabulary divides: with few tokens and a
            narrow model one product has too few tiles for the GPU.
        few: chunks up to which dW is added up in the weight's dtype; see `WeightGradient`.
    """

    student_tokens: int = 0
    teacher_tokens: int = 0
    splits: int = 8
    lanes: int = 512
    warps: int = 16
    sum_parts: int = 1
    few: int = 16
    rows: int = 0

    def sized(self, tokens: int, width: int, itemsize: int) -> Plan:
        """With both lengths set, chunks of about equal length, and as many lanes as the vocabulary has use for."""
        unit = max(16, int(MEMORY / (3 * width * itemsize)) // 16 * 16)
        student = min(self.student_tokens or 2 * unit, tokens)
        chunks = -(-tokens // student)
        student = min(student, (-(-tokens // chunks) + 15) // 16 * 16)
        teacher = min(self.teacher_tokens or unit, student)
        lanes = min(self.lanes, triton.next_power_of_2(max(32, -(-width // 8))))
        splits = min(self.splits, triton.next_power_of_2(-(-width // (8 * lanes))))
        warps = max(1, min(self.warps, lanes // 32))
        lengths = {"student_tokens": student, "teacher_tokens": teacher, "rows": self.rows or teacher}
        return replace(self, splits=splits, lanes=lanes, warps=warps, **lengths)


def plan_for(device: torch.device, tokens: int, width: int, itemsize: int) -> Plan:
    """The measured plan for a GPU, or the default, for so many tokens and logits."""
    return Plan(**measured("linear_kl", device)).sized(tokens, width, itemsize)


def linear_kl(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None,
    inverse: Tensor,
    *,
    divergence: str,
    beta: float,
    temperature: float,
    label_share: float,
    tokens: int,
    need_student: bool,
    need_weight: bool,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss (float32) and the gradients asked for, of the dtype of what they belong to.

    Args:
        student: `(T, d)` float32, bfloat16 or float16; the others as in `reference.linear_kl`.
        inverse: `(1,)` float32, one over the divisor, on the same device.
        tokens: tokens of the vocabulary; rows of both heads from there on are padding.
        plan: for tests and benchmarks; None is `plan_for`.
    """
    count, width = len(student), min(weight.shape[0], teacher_weight.shape[0])
    device = student.device
    grad_student = torch.empty(student.shape, dtype=student.dtype, device=device) if need_student else None
    losses = torch.empty(count, dtype=torch.float32, device=device)
    if not count:
        nothing = torch.zeros_like(weight) if need_weight else None
        return losses.sum(), grad_student, nothing
    itemsize = student.element_size()
    plan = plan_for(device, count, width, itemsize) if plan is None else plan.sized(count, width, itemsize)
    labels = labels.contiguous() if labels is not None and label_share else None
    loop = RowLoop(plan, width, tokens, divergence if label_share < 1 else None, temperature, device)
    head, teacher_head = weight[:width], teacher_weight[:width]
    mine = logits_buffer(plan.student_tokens, width, student)
    theirs = logits_buffer(plan.teacher_tokens, width, teacher) if loop.kind else mine
    sums = WeightGradient(weight, width, -(-count // plan.student_tokens), plan.few) if need_weight else None
    with torch.cuda.device(device) if student.is_cuda else contextlib.nullcontext():
        for start in range(0, count, plan.student_tokens):
            stop = min(start + plan.student_tokens, count)
            logits = mine[: stop - start]
            torch.mm(student[start:stop], head.T, out=logits[:, :width])
            for begin in range(start, stop, plan.teacher_tokens):
                end = min(begin + plan.teacher_tokens, stop)
                if loop.kind:
                    torch.mm(teacher[begin:end], teacher_head.T, out=theirs[: end - begin, :width])
                for first in range(begin, end, plan.rows):
                    last = min(first + plan.rows, end)
                    loop(
                        logits[first - start : last - start],
                        theirs[first - begin : last - begin] if loop.kind else theirs,
                        None if labels is None else labels[first:last],
                        inverse,
                        losses[first:last],
                        beta=beta,
                        label_share=label_share,
                    )
            grad = logits[:, :width]
            if grad_student is not None:
                hidden_gradient(grad, head, grad_student[start:stop], plan.sum_parts)
            if sums is not None:
                sums.add(grad, student[start:stop])
    return (losses.sum() * inverse).squeeze(0), grad_student, None if sums is None else sums.result()


def logits_buffer(count: int, width: int, like: Tensor) -> Tensor:
    """Uninitialized `(count, width)` and a bit more: rows start at multiples of 128 bytes or more."""
    return torch.empty(count, (width + 63) // 64 * 64, dtype=like.dtype, device=like.device)


def hidden_gradient(grad: Tensor, head: Tensor, out: Tensor, parts: int) -> None:
    """`out (n, d) = grad (n, V) @ head (V, d)`; in `parts`, summed in float32."""
    width = head.shape[0]
    if parts == 1 or width % (8 * parts):
        torch.mm(grad, head, out=out)
        return
    left = grad.unflatten(1, (parts, width // parts)).transpose(0, 1)
    out.copy_(torch.bmm(left, head.unflatten(0, (parts, -1))).sum(0, dtype=torch.float32))


class WeightGradient:
    """`dW (V, d)`, added up over chunks of tokens.

    Few chunks are added in the weight's dtype, as gradients of micro-batches are: in bfloat16 each addition rounds by
    2^-9 at most, 16 of them change dW by 0.3 % (root of their sum of squares), which is less than logits in bfloat16 do
    (0.25 to 0.5 %). More are added in float32, which takes the memory of two more copies of the weight (0.6 GB of
    151,936 tokens by 1,024, 1.6 GB by 2,560) and a product at 0.7 of the speed; frozen heads need neither.
    """

    def __init__(self, weight: Tensor, width: int, chunks: int, few: int) -> None:
        dtype = weight.dtype if chunks <= few else torch.float32
        self.dtype, self.first = weight.dtype, True
        self.sum = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        self.sum[width:] = 0
        self.used = self.sum[:width]

    def add(self, grad: Tensor, hidden: Tensor) -> None:
        """Adds `grad (n, V)^T @ hidden (n, d)`."""
        first, self.first = self.first, False
        if self.sum.dtype == grad.dtype:
            if first:
                torch.mm(grad.T, hidden, out=self.used)
            else:
                self.used.addmm_(grad.T, hidden)
        elif grad.is_cuda and _adds_to_float32(grad.dtype, grad.device):
            beta = 0 if first else 1
            torch.ops.aten.addmm.dtype_out(self.used, grad.T, hidden, torch.float32, beta=beta, out=self.used)
        elif first:
            self.used.copy_(grad.T @ hidden)
        else:
            self.used += grad.T @ hidden

    def result(self) -> Tensor:
        """Of the weight's dtype."""
        return self.sum.to(self.dtype)


@cache
def _adds_to_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch adds a product of 16-bit matrices to a float32 one; some versions have it and refuse."""
    total, part = torch.zeros(16, 16, device=device), torch.ones(16, 16, dtype=dtype, device=device)
    try:
        torch.ops.aten.addmm.dtype_out(total, part, part, torch.float32, out=total)
    except (AttributeError, RuntimeError):
        return False
    return True


class RowLoop:
    """The row kernels of one call, with what they share: two or three launches for a part of the tokens."""

    def __init__(
        self,
        plan: Plan,
        width: int,
        tokens: int,
        divergence: str | None,
        temperature: float,
        device: torch.device,
    ) -> None:
        self.plan, self.tokens, self.temperature = plan, tokens, temperature
        self.kind = 0 if divergence is None else rows.KINDS[divergence]
        self.twice = self.kind == rows.KINDS["jsd"]
        self.tiles = -(-width // (8 * plan.lanes))
        self.partial = torch.empty(plan.teacher_tokens, plan.splits, 8, dtype=torch.float32, device=device)
        self.sums = torch.empty(
            plan.teacher_tokens if self.twice else 0, plan.splits, 2, dtype=torch.float32, device=device
        )

    def __call__(
        self,
        mine: Tensor,
        theirs: Tensor,
        labels: Tensor | None,
        inverse: Tensor,
        losses: Tensor,
        *,
        beta: float,
        label_share: float,
    ) -> None:
        """Replaces logits `mine` by their gradient, and fills `losses`, not divided yet."""
        tau, count = self.temperature, len(mine)
        grid, c = (count * self.plan.splits,), LOG2E / tau
        shape = {"SPLITS": self.plan.splits, "LANES": self.plan.lanes, "FAST": not interpreted()}
        shape |= {"num_warps": self.plan.warps}
        has_labels = labels is not None
        variant = {"KIND": self.kind, "LABELS": has_labels, "PLAIN": has_labels and tau != 1}
        label_ids = labels if labels is not None else losses  # never read then
        strides = mine.stride(0), theirs.stride(0)
        rows.statistics[grid](
            mine, theirs, label_ids, self.partial, *strides, self.tiles, self.tokens, c, **variant, **shape
        )
        if self.twice:
            rows.jsd_sums[grid](
                mine, theirs, self.partial, self.sums, *strides, self.tiles, self.tokens, c, beta, **shape
            )
        kl_weight, grad_weight = (1 - label_share) * tau * tau, (1 - label_share) * tau
        rows.gradient[grid](
            mine, theirs, label_ids, self.partial, self.sums, inverse, losses, *strides, count, self.tiles, self.tokens,
            c, beta, kl_weight, grad_weight, label_share, **variant, **shape,
        )  # fmt: skip
