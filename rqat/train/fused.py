"""FusedAdam: the step of all buckets in a few launches, where the optimizer inside is torch's Adam or AdamW on CUDA.

The kernel (`rqat_kernels.latent_adam`) reads gradients from the model's parameters and writes `w_hat` into them: no
copy of either is made. Its state is torch's own, under torch's own names, so that checkpoints do not know which of the
two ways a step was made, and either may resume from the other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rqat_kernels.latent_adam import SEARCHED, Rates, Stack, fits, launches, runs_on, search

from .buckets import Bucket

if TYPE_CHECKING:
    from rqat_kernels.latent_adam import Launches, Search

LEFT_OUT = ("amsgrad", "maximize", "capturable", "differentiable")
"""Options of Adam that the kernel does not have."""


class FusedAdam:
    """Steps buckets for the Adam or AdamW `inner`, as it would.

    Args:
        inner: the optimizer; its groups are called latents, scales and zeros.
        in_codes: whether the latents' learning rate is in steps of the grid.
    """

    def __init__(self, inner: torch.optim.Optimizer, *, in_codes: bool = False) -> None:
        self.inner = inner
        self._in_codes = in_codes
        self._done: dict[int, int] = {}
        self._fits: dict[int, tuple[list[Any], bool]] = {}
        self._launches: dict[tuple[int, ...], tuple[list[int], Launches]] = {}
        self._searches: dict[torch.device, Search] = {}

    def taken(self, buckets: list[Bucket]) -> list[Bucket]:
        """Those whose next step can be made here: on the uniform grid, and with a gradient."""
        usable = (
            bool(buckets)
            and "latents" in self._groups()
            and type(self.inner) in (torch.optim.Adam, torch.optim.AdamW)
            and runs_on(buckets[0].latent)
            and self._is_plain()
        )
        taken = [bucket for bucket in buckets if usable and bucket.grid.uniform and self._suits(bucket)]
        kept = {id(bucket.latent) for bucket in taken}
        self._done = {key: done for key, done in self._done.items() if key in kept}
        return taken

    def _suits(self, bucket: Bucket) -> bool:
        """Whether its tensors are such; asked anew only when they are others than last time."""
        grads = [weight.grad for weight in bucket.weights]
        facts: list[Any] = [weight.data_ptr() for weight in bucket.weights]
        facts += [None if grad is None else (grad.data_ptr(), grad.dtype) for grad in grads]
        before, verdict = self._fits.get(id(bucket.latent), (None, False))
        if facts != before:
            verdict = any(grad is not None for grad in grads) and fits(
                list(bucket.weights), grads, [bucket.latent], bucket.origin
            )
            self._fits[id(bucket.latent)] = facts, verdict
        return verdict

    def step(self, buckets: list[Bucket], others: list[Tensor]) -> bool:
        """One update of latents, scales, zero points and the model's weights, in place, of buckets that are `taken`.

        The host waits for the gradients to be looked through; the update itself is still running when this returns.

        Args:
            buckets: which.
            others: gradients that must be finite, too.

        Returns:
            Whether all gradients are finite. Nothing has changed if they are not.
        """
        devices = {bucket.latent.device: None for bucket in buckets}
        apart = [grad for grad in others if grad.device not in devices or grad.dtype not in SEARCHED]
        if not all_finite(apart):
            return False
        refused = {}
        for device in devices:
            if device not in self._searches:
                self._searches[device] = search(device)
            mine = [w.grad for b in buckets if b.latent.device == device for w in b.weights if w.grad is not None]
            mine += [grad for grad in others if grad.device == device and grad.dtype in SEARCHED]
            refused[device] = self._searches[device].start(mine)
        # Where several devices take part, none may go on alone.
        if len(devices) > 1 and not all(self._searches[device].all_finite() for device in devices):
            return False
        groups = self._groups()
        alike: dict[tuple[torch.device, torch.dtype, int, int], list[Bucket]] = {}
        for bucket in buckets:
            grad = next(weight.grad for weight in bucket.weights if weight.grad is not None)
            key = (bucket.latent.device, grad.dtype, self._next_step(bucket, groups), bucket.grid.scheme.max_code)
            alike.setdefault(key, []).append(bucket)
        for (device, _, step, max_code), some in alike.items():
            self._launch(some, groups).step(
                [weight.grad for bucket in some for weight in bucket.weights],
                max_code,
                self._rates(groups, step),
                refused[device],
            )
        if not all(self._searches[device].all_finite() for device in devices):
            return False
        for (_, _, step, _), some in alike.items():
            counters = [state["step"] for bucket in some for state in self._states(bucket, groups) if state is not None]
            torch._foreach_add_(counters, 1)
            torch.autograd.graph.increment_version([weight for bucket in some for weight in bucket.weights])
            self._done.update((id(bucket.latent), step) for bucket in some)
        return True

    def _next_step(self, bucket: Bucket, groups: dict[str, dict[str, Any]]) -> int:
        """Read from the device once; the counters of a bucket are equal, since they are only ever stepped together."""
        done = self._done.get(id(bucket.latent))
        if done is None:
            done = int(next(state for state in self._states(bucket, groups) if state is not None)["step"].item())
        return done + 1

    def _launch(self, buckets: list[Bucket], groups: dict[str, dict[str, Any]]) -> Launches:
        """Launches for `buckets`: those of the step before, while every tensor is where it was."""
        stacks = []
        for bucket in buckets:
            latent, ratio, zero = (
                [parameter.detach()] + ([] if state is None else [state["exp_avg"], state["exp_avg_sq"]])
                for parameter, state in zip(
                    (bucket.latent, bucket.ratio, bucket.zero), self._states(bucket, groups), strict=True
                )
            )
            stacks.append(Stack(bucket.weights, latent, bucket.origin, ratio, zero))
        where = [
            tensor.data_ptr()
            for stack in stacks
            for tensor in (*stack.weights, *stack.latent, stack.origin, *stack.ratio, *stack.zero)
        ]
        key = tuple(id(bucket.latent) for bucket in buckets)
        before = self._launches.get(key)
        if before is None or before[0] != where:
            self._launches[key] = before = where, launches(stacks)
        return before[1]

    def _states(self, bucket: Bucket, groups: dict[str, dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Torch's states of latents, scales and zero points; None for what is frozen."""
        parts = (("latents", bucket.latent), ("scales", bucket.ratio), ("zeros", bucket.zero))
        frozen = {"zeros"} if bucket.grid.fixed_zero else set()
        return [
            self._state(parameter, groups[name]) if name in groups and name not in frozen else None
            for name, parameter in parts
        ]

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
            in_codes=self._in_codes,
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
