"""One optimizer step of quantization-aware training: gradient, Adam and requantizing at once. See `reference.py`.

On CUDA one Triton kernel. It equals the steps done one after the other within 1e-6 relative in latents and moments;
where a weight lies that close to the border of two codes, it may take the other one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import plain_call, use_triton
from . import reference
from .reference import Rates

__all__ = ["Rates", "fits", "latent_adam", "runs_on", "scale_of"]


def runs_on(tensor: Tensor) -> bool:
    """Whether there is a fused kernel on the device of `tensor` at all."""
    return use_triton(tensor)


def fits(weights: list[Tensor], grads: list[Tensor | None], latent: list[Tensor], origin: Tensor) -> bool:
    """Whether the fused kernel takes these tensors; arguments as those of `latent_adam`, one gradient at least."""
    if not use_triton(*weights, *(grad for grad in grads if grad is not None), *latent, origin):
        return False
    from . import kernel

    return kernel.fits(weights, grads, latent, origin)


@torch.library.custom_op("rqat::latent_adam", mutates_args=("weights", "latent", "ratio", "zero"))
def _latent_adam(
    weights: list[Tensor],
    grads: list[Tensor | None],
    latent: list[Tensor],
    origin: Tensor,
    ratio: list[Tensor],
    zero: list[Tensor],
    max_code: int,
    rates: list[float],
    decoupled: bool,
    step: int,
) -> None:
    lr, scale_lr, zero_lr, decay, beta1, beta2, eps = rates
    numbers = Rates(lr, scale_lr, zero_lr, decay, decoupled, beta1, beta2, eps, step)
    if fits(weights, grads, latent, origin):
        from . import kernel

        kernel.latent_adam(weights, grads, latent, origin, ratio, zero, max_code, numbers)
    else:
        reference.latent_adam(weights, grads, latent, origin, ratio, zero, max_code, numbers)


@_latent_adam.register_fake
def _(
    weights: list[Tensor],
    grads: list[Tensor | None],
    latent: list[Tensor],
    origin: Tensor,
    ratio: list[Tensor],
    zero: list[Tensor],
    max_code: int,
    rates: list[float],
    decoupled: bool,
    step: int,
) -> None:
    return None


def latent_adam(
    weights: list[Tensor],
    grads: list[Tensor | None],
    latent: list[Tensor],
    origin: Tensor,
    ratio: list[Tensor],
    zero: list[Tensor],
    max_code: int,
    rates: Rates,
) -> None:
    """One step, in place, of layers stacked as `R` rows of `g` weights.

    Args:
        weights: `w_hat` of each layer, `(O, I)`; written.
        grads: the gradients on them; None counts as zeros.
        latent: `w (R, g)` and its two moments.
        origin: `s_0 (R, 1)`.
        ratio: `r (R, 1)` and its two moments; without moments it stays as it is.
        zero: zero points `(R, 1)`, not rounded, and their two moments; without moments they stay as they are.
        max_code: `Q`.
        rates: learning rates and the like.
    """
    numbers = [rates.latent, rates.scale, rates.zero, rates.weight_decay, rates.beta1, rates.beta2, rates.eps]
    _latent_adam(weights, grads, latent, origin, ratio, zero, max_code, numbers, rates.decoupled, rates.step)


@torch.library.custom_op("rqat::scale_of", mutates_args=())
def _scale_of(origin: Tensor, ratio: Tensor) -> Tensor:
    if use_triton(origin, ratio) and origin.dtype == torch.float32:
        from . import kernel

        return kernel.scale_of(origin, ratio)
    return reference.scale_of(origin, ratio)


@_scale_of.register_fake
def _(origin: Tensor, ratio: Tensor) -> Tensor:
    return torch.empty(origin.shape, dtype=torch.float32, device=origin.device)


def scale_of(origin: Tensor, ratio: Tensor) -> Tensor:
    """Snapped scales `s = snap_scale(s_0 exp(r))` of any shape, float32: those that `latent_adam` works with."""
    return (reference.scale_of if plain_call(origin) else _scale_of)(origin, ratio)
