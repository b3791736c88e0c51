"""Differentiable fake quantization of weights and activations. `reference.py` is the definition.

Training in rqat itself quantizes once per optimizer step (`latent_adam`); this is for a forward pass that quantizes by
itself: activations, and modules (`module.py`). On CUDA weights go through the kernels of `grid` and `latent_step`,
activations through one of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..grid import IN_KERNELS
from ..latent_step import latent_step
from . import reference
from .reference import whole_zero

__all__ = ["fake_quant", "fake_quant_activations"]


@torch.library.custom_op("rqat::fake_quant", mutates_args=())
def _fake_quant(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, lsq: bool) -> Tensor:
    if use_triton(weight, scale, zero) and weight.dtype in IN_KERNELS:
        # Not through the operator of `grid`: one inside another costs as much as the kernel of a small layer.
        from ..grid import kernel

        return kernel.requantize(weight, scale, whole_zero(zero, max_code), max_code, weight.dtype)
    return reference.fake_quant(weight, scale, zero, max_code)


@_fake_quant.register_fake
def _(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, lsq: bool) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, scale, zero, ctx.max_code, ctx.lsq = inputs
    ctx.save_for_backward(weight, scale, zero)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, scale, zero = ctx.saved_tensors
    gw, gs, gz = latent_step(grad, weight, scale, whole_zero(zero, ctx.max_code), ctx.max_code, lsq=ctx.lsq)
    within = (zero >= 0) & (zero <= ctx.max_code)
    return gw, gs.to(scale.dtype), (gz * within).to(zero.dtype), None, None


_fake_quant.register_autograd(_backward, setup_context=_keep)


def fake_quant(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, *, lsq: bool = False) -> Tensor:
    """`w_hat (O, I)` in the dtype of `weight`; differentiable in weight, scale and zero point.

    Args:
        weight: `w (O, I)`.
        scale: `s (O, G)`, positive. Whoever exports it snaps it first (`grid.snap_scale`).
        zero: `z (O, G)` in codes; rounded and clamped here, straight through. For a symmetric grid pass `(Q + 1) / 2`
            without a gradient.
        max_code: `Q`.
        lsq: multiply the gradients of scale and zero point by `1 / sqrt(g Q)` (arXiv 1902.08153, section 2.2).
    """
    return _fake_quant(weight, scale, zero, max_code, lsq)


@torch.library.custom_op("rqat::fake_quant_activations", mutates_args=())
def _activations(x: Tensor, bits: int, group: int | None, symmetric: bool) -> Tensor:
    if use_triton(x) and x.dtype in IN_KERNELS:
        from . import kernel

        if (group or x.shape[-1]) <= kernel.WIDEST:
            return kernel.fake_quant_activations(x, bits, group, symmetric=symmetric)
    return reference.fake_quant_activations(x, bits, group, symmetric=symmetric)


@_activations.register_fake
def _(x: Tensor, bits: int, group: int | None, symmetric: bool) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _pass_on(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, None, None, None


_activations.register_autograd(_pass_on)


def fake_quant_activations(x: Tensor, bits: int, group: int | None = None, *, symmetric: bool = False) -> Tensor:
    """`x (..., I)` on the grid that each token, or each `group` of its features, spans; same shape and dtype.

    The gradient is passed on as it comes: nothing lies outside such a grid.

    Args:
        x: activations in float32, bfloat16, float16 or float64.
        bits: 2 to 8.
        group: features that share a scale; None: all of a token.
        symmetric: a grid around zero with a code less, instead of one from the smallest to the largest value.

    Raises:
        ValueError: `group` does not divide the features, or `bits` is out of range.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    if group is not None and (group < 1 or x.shape[-1] % group):
        raise ValueError(f"groups of {group} do not divide {x.shape[-1]} features")
    return _activations(x, bits, group, symmetric)
