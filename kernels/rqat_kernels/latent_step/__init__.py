"""Straight-through gradients of latents, scales and zero points. `reference.py` is the definition.

On CUDA one Triton kernel for latents and gradients in float32, bfloat16 and float16; its `gw` equals the reference's to
the bit. On the CPU the reference is called without a detour through torch's dispatcher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..grid import IN_KERNELS
from ..op import op
from . import reference

__all__ = ["latent_step"]


def _gradients(grad: Tensor, weight: Tensor, scale: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    gs = torch.empty(scale.shape, dtype=reference.arithmetic(weight), device=weight.device)
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device), gs, torch.empty_like(gs)


latent_step = op(
    "rqat::latent_step",
    fake=_gradients,
    kernel="kernel.latent_step",
    takes=lambda grad, weight, scale, zero, _: (
        use_triton(grad, weight, scale, zero) and {grad.dtype, weight.dtype} <= set(IN_KERNELS)
    ),
    plain=True,
)(reference.latent_step)
