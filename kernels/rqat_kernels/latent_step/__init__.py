"""Straight-through gradients of latents, scales and zero points. `reference.py` is the definition.

On CUDA one Triton kernel for latents and gradients in float32, bfloat16 and float16; its `gw` equals the reference's to
the bit. On the CPU the reference is called without a detour through torch's dispatcher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import plain_call, use_triton
from ..grid import IN_KERNELS
from . import reference

__all__ = ["latent_step"]


@torch.library.custom_op("rqat::latent_step", mutates_args=())
def _latent_step(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton(grad, weight, scale, zero) and {grad.dtype, weight.dtype} <= set(IN_KERNELS):
        from . import kernel

        return kernel.latent_step(grad, weight, scale, zero, max_code)
    return reference.latent_step(grad, weight, scale, zero, max_code)


@_latent_step.register_fake
def _(grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> tuple[Tensor, Tensor, Tensor]:
    gs = torch.empty(scale.shape, dtype=reference.arithmetic(weight), device=weight.device)
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device), gs, torch.empty_like(gs)


def latent_step(
    grad: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, max_code: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients `gw (O, I)` in the dtype of `weight`, `gs (O, G)` and `gz (O, G)` in float32 (float64 for float64).

    Args:
        grad: `D (O, I)`, the gradient on `w_hat`.
        weight: latent `w (O, I)`.
        scale: `s (O, G)`, as used in the forward pass (snapped).
        zero: `z (O, G)`, as used in the forward pass (whole numbers).
        max_code: `Q`.
    """
    if plain_call(weight):
        return reference.latent_step(grad, weight, scale, zero, max_code)
    return _latent_step(grad, weight, scale, zero, max_code)
