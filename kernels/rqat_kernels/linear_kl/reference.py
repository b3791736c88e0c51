"""Linear layer plus divergence between two next-token distributions, chunked over tokens, in plain torch.

Letters: tokens `T`, vocabulary `V`, student hidden states `h (T, d)` and head `W (V, d)`, teacher `h' (T, d')` and
`W' (V, d')`, temperature `tau`, share `beta`.

    p = softmax(h' W'^T / tau)                      the teacher
    q = softmax(h W^T / tau)                        the student
    divergence_t                                    one of `rqat_kernels.divergences`, of `p` and `q` at position t

    loss = ((1 - c) tau^2 sum_t divergence_t + c sum_t -log softmax(h W^T)[label_t]) / count

`tau^2` keeps the size of the gradient independent of the temperature (arXiv 1503.02531, section 2). `c` mixes in the
cross entropy with the labels, always at temperature 1; positions labelled -100 have none.

Heads may have more rows than there are tokens. Such padding takes no part: its probability is exactly 0 in every
softmax, and its rows have no gradient.

Gradients with respect to the logits `x = h W^T` are those of the divergence times `tau^2 / tau = tau`. They are
computed chunk by chunk in the forward pass, so that never more than a chunk of logits exists. Softmaxes are in float32,
or float64 when the hidden states are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..divergences import DIVERGENCES

PADDING = -1e30
"""The logit of padding: its probability is 0, while differences of log-probabilities stay finite."""


def linear_kl(
    student: Tensor,
    weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None,
    divisor: Tensor | float,
    *,
    divergence: str,
    beta: float,
    temperature: float,
    label_share: float,
    tokens: int,
    chunk: int,
    need_student: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss, float32 or float64, and the gradients of `student` and `weight` that are asked for.

    Args:
        student: `h (T, d)`.
        weight: `W (V, d)`.
        teacher: `h' (T, d')`.
        teacher_weight: `W' (V', d')`.
        labels: `(T,)` int64, or -100.
        divisor: `count` of the formula.
        divergence: which one.
        beta: the teacher's share in `m`.
        temperature: `tau`.
        label_share: `c`.
        tokens: rows of both heads from there on are padding; at most `min(V, V')`.
        chunk: tokens whose logits exist at once.
        need_student: whether the gradient of `student` is wanted.
        need_weight: whether that of `weight` is.
    """
    width = min(weight.shape[0], teacher_weight.shape[0])
    exact = torch.float64 if student.dtype == torch.float64 else torch.float32
    grad_hidden = torch.empty_like(student) if need_student else None
    grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if need_weight else None
    head, teacher_head = weight[:width], teacher_weight[:width]
    tau, share = temperature, label_share
    loss = torch.zeros((), dtype=exact, device=student.device)
    for start in range(0, len(student), chunk):
        rows = slice(start, start + chunk)
        # Padding is masked and not cut, since matrix products of an odd width are slow on GPUs.
        logits = (student[rows] @ head.T).to(exact)
        logits[:, tokens:] = PADDING
        total = logits.new_zeros(())
        grad: Tensor | None = None
        if share < 1:
            log_q = torch.log_softmax(logits / tau if tau != 1 else logits, -1)
            theirs = (teacher[rows] @ teacher_head.T).to(exact)
            theirs[:, tokens:] = PADDING
            log_p = torch.log_softmax(theirs / tau if tau != 1 else theirs, -1)
            per_token, grad_kl = DIVERGENCES[divergence].of(log_q, log_p, beta)
            total = total + (1 - share) * tau * tau * per_token.sum()
            grad = grad_kl.mul_((1 - share) * tau)
        if labels is not None and share:
            entropy, grad_ce = _cross_entropy(logits, labels[rows])
            total = total + share * entropy
            grad = grad_ce.mul_(share) if grad is None else grad.add_(grad_ce, alpha=share)
        loss += total / divisor
        assert grad is not None  # share < 1, or share and labels
        grad = (grad / divisor).to(student.dtype)
        if grad_hidden is not None:
            torch.matmul(grad, head, out=grad_hidden[rows])
        if grad_weight is not None:
            grad_weight[:width] += (grad.T @ student[rows]).to(exact)
    return loss, grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Summed cross entropy over labelled positions and its gradient on the logits."""
    labelled = labels != -100
    index = labels.clamp(min=0)[:, None]
    log_q = torch.log_softmax(logits, -1)
    entropy = -(log_q.gather(-1, index).squeeze(-1) * labelled).sum()
    grad = log_q.exp_().scatter_add_(-1, index, torch.full_like(index, -1, dtype=log_q.dtype))
    return entropy, grad.mul_(labelled[:, None])
