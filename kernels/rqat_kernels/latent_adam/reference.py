"""One optimizer step of quantization-aware training in plain torch: Adam on latents, scales and zero points.

    gw, gs, gz = latent_step(D, w, s, z)                          with s = scale_of(s_0, r), z = round(zero)
    w, r, zero = Adam(w, gw), Adam(r, gs * s), clamp(Adam(zero, gz), 0, Q)
    w_hat      = requantize(w, scale_of(s_0, r), round(zero))

Adam is that of torch.optim (arXiv 1412.6980, algorithm 1; decoupled weight decay: arXiv 1711.05101, algorithm 2):

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   w -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..grid.reference import requantize, snap_scale
from ..latent_step.reference import latent_step


@dataclass(frozen=True)
class Rates:
    """The numbers of one step.

    Attributes:
        latent, scale, zero: learning rates.
        weight_decay: of the latents.
        decoupled: whether it is AdamW's.
        beta1, beta2, eps: as torch.optim calls them.
        step: `t`, 1 in the first step.
        in_codes: the latents' rate is in steps of the grid: what Adam moves them by, decay included, is multiplied by
            their group's `s_0`.
    """

    latent: float
    scale: float
    zero: float
    weight_decay: float
    decoupled: bool
    beta1: float
    beta2: float
    eps: float
    step: int
    in_codes: bool = False

    def size(self, rate: float) -> float:
        """`lr / (1 - b1^t)`."""
        return rate / (1.0 - self.beta1**self.step)

    @property
    def spread(self) -> float:
        """`sqrt(1 - b2^t)`."""
        return math.sqrt(1.0 - self.beta2**self.step)


def scale_of(origin: Tensor, ratio: Tensor) -> Tensor:
    """Snapped scales `s = snap_scale(s_0 exp(r))` of any shape, float32: those that `latent_adam` works with."""
    return snap_scale(origin * ratio.exp())


def latent_adam(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    latent: Sequence[Tensor],
    origin: Tensor,
    ratio: Sequence[Tensor],
    zero: Sequence[Tensor],
    max_code: int,
    rates: Rates,
) -> None:
    """One step, in place; see the package for the arguments."""
    w, r, z = latent[0].view(len(origin), -1), ratio[0], zero[0]
    s, whole = scale_of(origin, r), z.round()
    start = 0
    gradient = w.new_zeros(w.shape)
    for weight, grad in zip(weights, grads, strict=True):
        rows = weight.numel() // w.shape[1]
        if grad is not None:
            gradient[start : start + rows] = grad.reshape(rows, -1)
        start += rows
    gw, gs, gz = latent_step(gradient, w, s, whole, max_code)
    unit = origin if rates.in_codes else 1.0
    if rates.decoupled:
        w.mul_(1.0 - rates.latent * rates.weight_decay * unit)
    else:
        gw.add_(w, alpha=rates.weight_decay)
    _adam(w, gw, latent[1:], rates, rates.latent, unit)
    _adam(r, gs * s, ratio[1:], rates, rates.scale)
    _adam(z, gz, zero[1:], rates, rates.zero)
    z.clamp_(0, max_code)
    exact = requantize(w, scale_of(origin, r), z.round(), max_code, w.dtype)
    for weight, part in zip(weights, exact.split([weight.numel() // w.shape[1] for weight in weights]), strict=True):
        weight.copy_(part.view(weight.shape))


def _adam(
    value: Tensor, grad: Tensor, state: Sequence[Tensor], rates: Rates, rate: float, unit: Tensor | float = 1.0
) -> None:
    """Moves `value` by one step along `grad`, in `unit`; nothing without moments."""
    if not state:
        return
    first, second = (moment.view(value.shape) for moment in state)
    first.mul_(rates.beta1).add_(grad, alpha=1.0 - rates.beta1)
    second.mul_(rates.beta2).addcmul_(grad, grad, value=1.0 - rates.beta2)
    value.addcdiv_(first * unit, second.sqrt().div_(rates.spread).add_(rates.eps), value=-rates.size(rate))
