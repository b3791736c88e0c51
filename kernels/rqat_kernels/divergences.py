"""Divergences between two next-token distributions, each one entry of a table: what `linear_kl` and `kd` know.

`p` is the teacher, `q` the student, both `(T, V)`; `m = beta p + (1 - beta) q`.

    forward   KL(p || q) = sum p (log p - log q)
    reverse   KL(q || p)
    jsd       beta KL(p || m) + (1 - beta) KL(q || m)      (arXiv 2306.13649, eq. 1)
    skew      KL(p || m): finite where the student has no probability left (arXiv 2402.03898, section 3.1)

Gradients with respect to the student's logits `x`, of which `q = softmax(x)`:

    forward   q - p
    reverse   q (f - sum q f),   f = log q - log p
    jsd       q (f - sum q f),   f = (1 - beta) (log q - log m)
    skew      q (f - sum q f),   f = (beta - 1) p / m

This module imports no torch, so that options can be derived from its names: functions use what tensors bring along. An
entry is all that plain torch needs; `linear_kl/rows.py` has the Triton form of those that say `fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

FAR = 80.0
"""Differences of log-probabilities beyond which `exp` would overflow float32."""


@dataclass(frozen=True)
class Divergence:
    """One way to compare two distributions.

    Attributes:
        of: from `log q` and `log p`, both `(T, V)`, and `beta`: the divergence per token `(T,)`, and its gradient on
            the student's logits `(T, V)`. May write over `log q`.
        mixes: it mixes both distributions by `beta`, which has to lie between 0 and 1.
        fused: Triton has a form of it; else it runs in plain torch on a GPU, too.
    """

    of: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
    mixes: bool = False
    fused: bool = False


def _forward(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp_().sub_(p)


def _reverse(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    f = log_q.sub_(log_p)
    per_token = (q * f).sum(-1)
    return per_token, q.mul_(f.sub_(per_token[:, None]))


def _jsd(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    # log(q / m) = -log1p(beta (p / q - 1)), exactly 0 where p = q.
    gap = (log_p - log_q).clamp_(-FAR, FAR)
    from_q = -(beta * gap.expm1()).log1p()
    from_p = -((1 - beta) * (-gap).expm1()).log1p()
    in_q = (q * from_q).sum(-1)
    per_token = beta * (log_p.exp() * from_p).sum(-1) + (1 - beta) * in_q
    return per_token, q.mul_(from_q.sub_(in_q[:, None])).mul_(1 - beta)


def _skew(log_q: Tensor, log_p: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    gap = (log_p - log_q).clamp_(-FAR, FAR)
    from_p = -((1 - beta) * (-gap).expm1()).log1p()
    per_token = (log_p.exp() * from_p).sum(-1)
    # Less its value where p = q, which changes nothing: exactly 0 there.
    f = from_p.expm1().mul_(beta - 1)
    return per_token, q.mul_(f.sub_((q * f).sum(-1)[:, None]))


DIVERGENCES = {
    "forward": Divergence(_forward, fused=True),
    "reverse": Divergence(_reverse, fused=True),
    "jsd": Divergence(_jsd, mixes=True, fused=True),
    "skew": Divergence(_skew, mixes=True),
}
"""Every divergence, by name."""

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(DIVERGENCES)]
"""Type of an option that names one."""
