"""Linear layer plus divergence from a teacher known by its `k` likeliest tokens, in plain torch.

Letters as in `linear_kl/reference.py`. Of the teacher there are the ids `S` of its top `k` tokens and `log p` of each.
All other tokens are one bucket, with what is left of the probability:

    P = sum_S p,   Q = sum_S q,   q = softmax(h W^T / tau)
    loss = tau^2 sum_t [sum_S p (log p - log q) + (1 - P) (log(1 - P) - log(1 - Q))] / count

That is a true KL of two distributions over `k + 1` events, so never negative. Without the bucket it would be negative
wherever the student is surer than the teacher (`P < 1` is all the reference has, while `Q` may reach 1).

Gradient with respect to the logits, times `1 / (tau count)` of the loss's `tau^2`:

    q_i - p_i                      i in S
    q_i (P - Q) / (1 - Q)          elsewhere

`1 - Q` is summed over the tokens outside `S`, not subtracted from 1. Log-probabilities rounded to bfloat16 may add up
to more than 1; then they are divided by their sum and the bucket is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = -1e30
"""The logit of padding, and of the support where only the tail is summed."""


def topk_of(
    hidden: Tensor, weight: Tensor, k: int, *, temperature: float, tokens: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Ids int32 and log-probabilities float32 (float64 for float64), both `(T, k)`, likeliest first."""
    exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    ids = torch.empty(len(hidden), k, dtype=torch.int32, device=hidden.device)
    logp = torch.empty(len(hidden), k, dtype=exact, device=hidden.device)
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = hidden[rows] @ weight.T
        logits[:, tokens:] = -torch.inf
        best, index = torch.topk(logits, k, -1)
        total = torch.logsumexp(logits.to(exact) / temperature, -1, keepdim=True)
        ids[rows], logp[rows] = index.int(), best.to(exact) / temperature - total
    return ids, logp


def linear_topk_kl(
    student: Tensor,
    weight: Tensor,
    ids: Tensor,
    logp: Tensor,
    divisor: Tensor | float,
    *,
    temperature: float,
    tokens: int,
    chunk: int,
    need_student: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss, float32 or float64, and the gradients of `student` and `weight` that are asked for.

    Args:
        student: `h (T, d)`.
        weight: `W (V, d)`.
        ids: `(T, k)`, no id twice in a row.
        logp: `(T, k)`.
        divisor: `count` of the formula.
        temperature: `tau`, also of `logp`.
        tokens: rows of the head from there on are padding.
        chunk: tokens whose logits exist at once.
        need_student: whether the gradient of `student` is wanted.
        need_weight: whether that of `weight` is.
    """
    exact = torch.float64 if student.dtype == torch.float64 else torch.float32
    grad_hidden = torch.empty_like(student) if need_student else None
    grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if need_weight else None
    tau = temperature
    loss = torch.zeros((), dtype=exact, device=student.device)
    for start in range(0, len(student), chunk):
        rows = slice(start, start + chunk)
        logits = (student[rows] @ weight.T).to(exact)
        logits[:, tokens:] = PADDING
        logits /= tau
        support = ids[rows].long()
        log_p = logp[rows].to(exact)
        log_p = log_p - log_p.logsumexp(-1, keepdim=True).clamp(min=0)
        p = log_p.exp()
        p_tail = (1 - p.sum(-1)).clamp(min=0)

        ours = logits.gather(-1, support)
        logits.scatter_(-1, support, PADDING)
        lse_tail = logits.logsumexp(-1)
        lse = torch.logaddexp(lse_tail, ours.logsumexp(-1))
        log_q, log_q_tail = ours - lse[:, None], lse_tail - lse
        tail = torch.where(p_tail > 0, p_tail * (p_tail.log() - log_q_tail), 0)
        loss += tau * tau * ((p * (log_p - log_q)).sum(-1) + tail).sum() / divisor

        grad = logits.sub_(lse_tail[:, None]).exp_().mul_((log_q_tail.exp() - p_tail)[:, None])
        grad.scatter_(-1, support, log_q.exp() - p)
        grad = (grad * tau / divisor).to(student.dtype)
        if grad_hidden is not None:
            torch.matmul(grad, weight, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight += (grad.T @ student[rows]).to(exact)
    return loss, grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)
