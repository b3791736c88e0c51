"""Distillation loss straight from hidden states and head weights. `reference.py` is the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..divergences import DIVERGENCES
from ..op import op
from . import reference

__all__ = ["CHUNK_ELEMENTS", "linear_kl"]

CHUNK_ELEMENTS = 1 << 22
"""Logits in a chunk of plain torch: `chunk tokens * V`. 16 MiB per array in float32."""


def linear_kl(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    *,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    label_share: float = 0.0,
    count: Tensor | float | None = None,
    vocabulary: int | None = None,
    chunk_elements: int | None = None,
) -> Tensor:
    """Loss, a float32 scalar (float64 for float64 inputs), differentiable in `student` and `weight`.

    On a GPU logits exist in the dtype of the hidden states, a chunk of tokens at a time: 0.47 GB of them, or what was
    measured best (`measured("linear_kl", device)`, whose keys are the fields of `kernel.Plan`).

    Args:
        student: `h (T, d)`: only the positions that count.
        weight: `W (V, d)`.
        teacher: `h' (T, d')`, without gradient.
        teacher_weight: `W' (V', d')`.
        divergence: a name of `rqat_kernels.divergences`.
        beta: the teacher's share in `m`, between 0 and 1; for those that mix.
        temperature: `tau > 0`.
        labels: `(T,)` int64, or -100; needed for `label_share > 0`.
        label_share: `c` in [0, 1].
        count: divisor; None is `T`, so that the result is the mean over tokens. With gradient accumulation it is the
            number of tokens of the whole batch. A tensor is not waited for.
        vocabulary: number of tokens; rows of both heads from there on are padding. None is `min(V, V')`, never more.
        chunk_elements: how many logits of the student may exist at once; None is `CHUNK_ELEMENTS` in plain torch.

    Raises:
        ValueError: a setting out of its range, or labels or positions that are missing.
    """
    width = min(weight.shape[0], teacher_weight.shape[0])
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence {divergence!r} is unknown. Known: {', '.join(DIVERGENCES)}.")
    if DIVERGENCES[divergence].mixes and not 0 < beta < 1:
        raise ValueError(f"beta {beta} is not between 0 and 1. Give 'forward' or 'reverse' for the limits.")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    if label_share and labels is None:
        raise ValueError("label_share needs labels.")
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student positions, {len(teacher)} teacher positions.")
    counted = count if isinstance(count, Tensor) else None
    recording = torch.is_grad_enabled()
    loss, _, _ = _linear_kl(
        student,
        weight,
        teacher,
        teacher_weight,
        labels,
        counted,
        max(1, len(student)) if count is None or isinstance(count, Tensor) else count,
        divergence,
        beta,
        temperature,
        label_share,
        width if vocabulary is None else min(vocabulary, width),
        0 if chunk_elements is None else max(1, chunk_elements // width),
        recording and student.requires_grad,
        recording and weight.requires_grad,
    )
    return loss


def _results(student: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_student, need_weight = arguments[-2:]
    exact = torch.float64 if student.dtype == torch.float64 else torch.float32
    return (
        student.new_empty((), dtype=exact),
        student.new_empty(student.shape if need_student else (0,)),
        weight.new_empty(weight.shape if need_weight else (0,)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.needed = inputs[-2:]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    scaled = [
        grad * upstream.to(grad.dtype) if needed else None
        for grad, needed in zip(ctx.saved_tensors, ctx.needed, strict=True)
    ]
    return (*scaled, *[None] * 13)


@op("rqat::linear_kl", fake=_results, keep=_keep, backward=_backward)
def _linear_kl(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None,
    count: Tensor | None,
    divisor: float,
    divergence: str,
    beta: float,
    temperature: float,
    label_share: float,
    tokens: int,
    chunk: int,
    need_student: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and the gradients of `student` and `weight`; empty where not needed. `chunk` 0 is the default."""
    settings: dict[str, Any] = {
        "divergence": divergence,
        "beta": beta,
        "temperature": temperature,
        "label_share": label_share,
        "tokens": tokens,
        "need_student": need_student,
        "need_weight": need_weight,
    }
    if (
        use_triton(student, weight, teacher, teacher_weight)
        and student.dtype != torch.float64
        and DIVERGENCES[divergence].fused
    ):
        from . import kernel

        if count is None:
            inverse = torch.full((1,), 1 / divisor, dtype=torch.float32, device=student.device)
        else:
            inverse = count.to(student.device, torch.float32, non_blocking=True).reshape(1).reciprocal()
        plan = kernel.Plan(student_tokens=chunk, teacher_tokens=chunk) if chunk else None
        found = kernel.linear_kl(student, weight, teacher, teacher_weight, labels, inverse, plan=plan, **settings)
    else:
        chunk = chunk or max(1, CHUNK_ELEMENTS // min(weight.shape[0], teacher_weight.shape[0]))
        found = reference.linear_kl(
            student,
            weight,
            teacher,
            teacher_weight,
            labels,
            divisor if count is None else count,
            chunk=chunk,
            **settings,
        )
    loss, grad_student, grad_weight = found
    return (
        loss,
        student.new_empty(0) if grad_student is None else grad_student,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )
