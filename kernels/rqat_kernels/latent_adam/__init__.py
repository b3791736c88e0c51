"""One optimizer step of quantization-aware training: gradient, Adam and requantizing at once. See `reference.py`.

On CUDA one Triton kernel. It equals the steps done one after the other within 1e-6 relative in latents and moments;
where a weight lies that close to the border of two codes, it may take the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..grid import IN_KERNELS
from ..op import op
from . import reference
from .reference import Rates
from .stack import Stack

if TYPE_CHECKING:
    from .kernel import Launches as Launches
    from .kernel import Search as Search

__all__ = ["SEARCHED", "Rates", "Stack", "fits", "latent_adam", "launches", "runs_on", "scale_of", "search"]

SEARCHED = IN_KERNELS
"""Dtypes of gradients that a `search` looks through."""


def runs_on(tensor: Tensor) -> bool:
    """Whether there is a fused kernel on the device of `tensor` at all."""
    return use_triton(tensor)


def fits(weights: list[Tensor], grads: list[Tensor | None], latent: list[Tensor], origin: Tensor) -> bool:
    """Whether the fused kernel takes these tensors; arguments as those of `latent_adam`, one gradient at least."""
    if not use_triton(*weights, *(grad for grad in grads if grad is not None), *latent, origin):
        return False
    from . import kernel

    return kernel.fits(weights, grads, latent, origin)


def launches(stacks: Sequence[Stack]) -> Launches:
    """Steps of `stacks`, all of which `fits`, in a few launches: its `step` does what `latent_adam` does of each."""
    from .kernel import Launches

    return Launches(stacks)


def search(device: torch.device) -> Search:
    """What looks for infinities and NaNs in gradients on a device that `runs_on`, without waiting for the answer."""
    from .kernel import Search

    return Search(device)


@op("rqat::latent_adam", fake=lambda *_: None, mutates=("weights", "latent", "ratio", "zero"))
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
    in_codes: bool,
) -> None:
    lr, scale_lr, zero_lr, decay, beta1, beta2, eps = rates
    numbers = Rates(lr, scale_lr, zero_lr, decay, decoupled, beta1, beta2, eps, step, in_codes)
    if fits(weights, grads, latent, origin):
        from . import kernel

        kernel.latent_adam(weights, grads, latent, origin, ratio, zero, max_code, numbers)
    else:
        reference.latent_adam(weights, grads, latent, origin, ratio, zero, max_code, numbers)


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
    _latent_adam(
        weights, grads, latent, origin, ratio, zero, max_code, numbers, rates.decoupled, rates.step, rates.in_codes
    )


scale_of = op(
    "rqat::scale_of",
    fake=lambda origin, ratio: torch.empty(origin.shape, dtype=torch.float32, device=origin.device),
    kernel="kernel.scale_of",
    takes=lambda origin, ratio: use_triton(origin, ratio) and origin.dtype == torch.float32,
    plain=True,
)(reference.scale_of)
