"""Distillation from a cache of a teacher's likeliest tokens. `reference.py` is the definition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..linear_kl import CHUNK_ELEMENTS
from . import reference

__all__ = ["linear_topk_kl", "topk_of"]

ON_GPU = 1 << 26
"""Logits in a chunk of the teacher on a GPU: 128 MiB in bfloat16, twice that in float32 beside it."""


@torch.no_grad()
def topk_of(
    hidden: Tensor,
    weight: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """The teacher as it is cached: ids int32 and log-probabilities, both `(T, k)`, likeliest first.

    Six bytes a pair: 384 a token for k = 64, where all of a vocabulary of 151,936 would be 304 KB.

    Args:
        hidden: `h' (T, d')`.
        weight: `W' (V', d')`.
        k: how many.
        temperature: the one that training will have.
        vocabulary: number of tokens; rows of the head from there on are padding.
        dtype: of the log-probabilities. Rounding to bfloat16 changes a probability of 0.2 by up to 0.4 %, one of
            0.001 by up to 2 %.

    Raises:
        ValueError: `k` is not smaller than the vocabulary: then nothing is saved.
    """
    tokens = _tokens(weight, vocabulary, k)
    chunk = max(1, (ON_GPU if hidden.is_cuda else CHUNK_ELEMENTS) // len(weight))
    ids, logp = reference.topk_of(hidden, weight, k, temperature=temperature, tokens=tokens, chunk=chunk)
    return ids, logp.to(dtype)


def linear_topk_kl(
    student: Tensor,
    weight: Tensor,
    ids: Tensor,
    logp: Tensor,
    *,
    temperature: float = 1.0,
    count: Tensor | float | None = None,
    vocabulary: int | None = None,
    chunk_elements: int | None = None,
) -> Tensor:
    """Loss, a float32 scalar (float64 for float64 inputs), differentiable in `student` and `weight`.

    Args:
        student: `h (T, d)`: only the positions that count.
        weight: `W (V, d)`.
        ids: `(T, k)` int32 or int64, no id twice in a row, all below `vocabulary`.
        logp: `(T, k)`, the teacher's log-probabilities of them at this temperature.
        temperature: `tau > 0`.
        count: divisor; None is `T`. A tensor is not waited for.
        vocabulary: number of tokens; rows of the head from there on are padding.
        chunk_elements: how many logits may exist at once; None is `CHUNK_ELEMENTS` in plain torch.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, or `k` as large as the vocabulary.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    if ids.shape != logp.shape or ids.dim() != 2 or len(ids) != len(student):
        raise ValueError(f"ids {tuple(ids.shape)} and logp {tuple(logp.shape)} for {len(student)} positions.")
    counted = isinstance(count, Tensor)
    recording = torch.is_grad_enabled()
    loss, _, _ = _linear_topk_kl(
        student,
        weight,
        ids,
        logp,
        count if counted else None,
        max(1, len(student)) if counted or count is None else count,
        temperature,
        _tokens(weight, vocabulary, ids.shape[1]),
        0 if chunk_elements is None else max(1, chunk_elements // len(weight)),
        recording and student.requires_grad,
        recording and weight.requires_grad,
    )
    return loss


def _tokens(weight: Tensor, vocabulary: int | None, k: int) -> int:
    tokens = len(weight) if vocabulary is None else min(vocabulary, len(weight))
    if not 0 < k < tokens:
        raise ValueError(f"k is {k}, which is not between 1 and the vocabulary's {tokens}. linear_kl takes all of it.")
    return tokens


@torch.library.custom_op("rqat::linear_topk_kl", mutates_args=())
def _linear_topk_kl(
    student: Tensor,
    weight: Tensor,
    ids: Tensor,
    logp: Tensor,
    count: Tensor | None,
    divisor: float,
    temperature: float,
    tokens: int,
    chunk: int,
    need_student: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and the gradients of `student` and `weight`; empty where not needed. `chunk` 0 is the default."""
    settings: dict[str, Any] = {
        "temperature": temperature,
        "tokens": tokens,
        "need_student": need_student,
        "need_weight": need_weight,
    }
    if use_triton(student, weight, ids, logp) and student.dtype != torch.float64:
        from . import kernel

        if count is None:
            inverse = torch.full((1,), 1 / divisor, dtype=torch.float32, device=student.device)
        else:
            inverse = count.to(student.device, torch.float32, non_blocking=True).reshape(1).reciprocal()
        plan = kernel.Plan(student_tokens=chunk) if chunk else None
        found = kernel.linear_topk_kl(student, weight, ids, logp, inverse, plan=plan, **settings)
    else:
        chunk = chunk or max(1, CHUNK_ELEMENTS // len(weight))
        divided = divisor if count is None else count
        found = reference.linear_topk_kl(student, weight, ids, logp, divided, chunk=chunk, **settings)
    loss, grad_student, grad_weight = found
    return (
        loss,
        student.new_empty(0) if grad_student is None else grad_student,
        weight.new_empty(0) if grad_weight is None else grad_weight,
    )


@_linear_topk_kl.register_fake
def _(student: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
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
    return (*scaled, *[None] * 9)


_linear_topk_kl.register_autograd(_backward, setup_context=_keep)
