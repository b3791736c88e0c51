"""FusedAdam: the whole step of a bucket in one kernel, where the optimizer inside is torch's Adam or AdamW on CUDA.

The kernel (`rqat_kernels.latent_adam`) reads gradients from the model's parameters and writes `w_hat` into them: no
copy of either is made. Its state is torch's own, under torch's own names, so that checkpoints do not know which of the
two ways a step was made, and either may go on from the other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rqat_kernels.latent_adam import Rates, fits, latent_adam

from .buckets import Bucket

LEFT_OUT = ("amsgrad", "maximize", "capturable", "differentiable")
"""Options of Adam that the kernel does not have."""


class FusedAdam:
    """Steps buckets for the Adam or AdamW `inner`, as it would.

    Args:
        inner: the optimizer; its groups are called latents, scales and zeros.
        max_code: `Q`.
        lsq: as for `QuantizedOptimizer`.
    """

    def __init__(self, inner: torch.optim.Optimizer, max_code: int, *, lsq: bool) -> None:
        self.inner, self.max_code, self.lsq = inner, max_code, lsq
        self._done: dict[int, int] = {}

    def takes(self, bucket: Bucket) -> bool:
        """Whether the next step of `bucket` can be made here; False as well when it has no gradient."""
        grads = [weight.grad for weight in bucket.weights]
        if (
            type(self.inner) in (torch.optim.Adam, torch.optim.AdamW)
            and any(grad is not None for grad in grads)
            and self._is_plain()
            and fits(list(bucket.weights), grads, [bucket.latent], bucket.origin)
        ):
            return True
        self._done.pop(id(bucket.latent), None)
        return False

    def step(self, bucket: Bucket) -> None:
        """One update of latents, scales and zero points, and of the model's weights; in place."""
        groups = self._groups()
        states = [
            self._state(parameter, groups[name]) if name in groups else None
            for name, parameter in (("latents", bucket.latent), ("scales", bucket.ratio), ("zeros", bucket.zero))
        ]
        counters = [state["step"] for state in states if state is not None]
        # Read from the device once; all three are equal, since they are only ever stepped together.
        step = self._done.get(id(bucket.latent), None)
        step = 1 + (int(counters[0].item()) if step is None else step)
        latent, ratio, zero = (
            [parameter.detach()] + ([] if state is None else [state["exp_avg"], state["exp_avg_sq"]])
            for parameter, state in zip((bucket.latent, bucket.ratio, bucket.zero), states, strict=True)
        )
        latent_adam(
            [weight.detach() for weight in bucket.weights],
            [weight.grad for weight in bucket.weights],
            latent,
            bucket.origin,
            ratio,
            zero,
            self.max_code,
            self._rates(groups, step),
            lsq=self.lsq,
        )
        torch._foreach_add_(counters, 1)
        self._done[id(bucket.latent)] = step

    def _groups(self) -> dict[str, dict[str, Any]]:
        return {group["name"]: group for group in self.inner.param_groups if group["name"] != "others"}

    def _is_plain(self) -> bool:
        """Whether all groups share betas and eps, only latents decay, and nothing unusual is switched on."""
        groups = self._groups()
        first = groups["latents"]
        return all(
            not any(group.get(option) for option in LEFT_OUT)
            and not isinstance(group["lr"], Tensor)
            and (group["betas"], group["eps"]) == (first["betas"], first["eps"])
            and (name == "latents" or group["weight_decay"] == 0)
            for name, group in groups.items()
        )

    def _rates(self, groups: dict[str, dict[str, Any]], step: int) -> Rates:
        first = groups["latents"]
        return Rates(
            latent=first["lr"],
            scale=groups["scales"]["lr"] if "scales" in groups else 0.0,
            zero=groups["zeros"]["lr"] if "zeros" in groups else 0.0,
            weight_decay=first["weight_decay"],
            decoupled=bool(first.get("decoupled_weight_decay", type(self.inner) is torch.optim.AdamW)),
            beta1=first["betas"][0],
            beta2=first["betas"][1],
            eps=first["eps"],
            step=step,
        )

    def _state(self, parameter: nn.Parameter, group: dict[str, Any]) -> dict[str, Any]:
        """Torch's state of a parameter; made as Adam makes it when there is none yet."""
        state = self.inner.state[parameter]
        if not state:
            device = parameter.device if group["fused"] else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
        return state


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether there is no infinity and no NaN in any of them; waits for the device once."""
    given = [tensor for tensor in tensors if tensor is not None]
    return not given or bool(torch.isfinite(torch.nn.utils.get_total_norm(given, norm_type=torch.inf)))
