"""QuantizedOptimizer: quantization-aware training as an optimizer around a plain model.

The model's quantized weights always are `w_hat`, on the uniform grid `(q - z) * s`: exactly what an exported
checkpoint decodes to; backward leaves its gradient `D` on them. The latent weights `w`, the scales `s` and the zero
points `z` live here. A step

    1. maps `D` to `(gw, gs, gz)` by the straight-through formulas of the layer's grid (`rqat.Grid.gradients`); they are
       linear in `D` and `w, s, z` do not change within a step, so this is exact under gradient accumulation;
    2. lets an ordinary torch optimizer update `(w, s, z)`;
    3. snaps the scales, requantizes and writes the new `w_hat` into the model.

Scales are `s = snap_scale(s_0 * exp(r))` with `r` trained from 0, so that their learning rate is relative to the scale
itself: Adam at `scale_lr=1e-3` moves a scale by about 0.1 % per step. Whole zero points are trained in units of codes,
clamped to the codes' range and rounded, straight through.

With AdamW or Adam on CUDA a bucket's three parts are one kernel where the grid is uniform: `fused.py`.

Everything else that is trained (norms, biases, linear layers left out) has a float32 master here, and the model
receives it rounded to bfloat16, so that saving a checkpoint in bfloat16 moves nothing.

Of a model that is split over processes (`shards.py`) all this is about the rows of this process, and so are the layers
and latents that are handed in.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..contracts import QuantizedWeight
from ..errors import NumericsError, RqatError, RunError
from ..grids import grid_of
from ..model.checkpoint import scheme_of
from ..model.layers import ENDS
from ..optimizers import OPTIMIZERS, UNSUITABLE
from ..storage import fingerprint_of
from .buckets import Bucket, plan_buckets, sum_of_bits
from .fused import FusedAdam, all_finite
from .regroup import regrouped
from .shards import Share, is_part, local, root_mean_square
from .trainable import other_parameters, weights_of

FORMAT = 1
"""Version of `state_dict`'s layout."""


class QuantizedOptimizer(torch.optim.Optimizer):
    """Trains the quantized model `model`, whose weights stay on the grid at every moment.

    Args:
        model: a plain model. Parameters that are not trained get `requires_grad=False`: no gradient is computed.
        layers: full name of each quantized linear layer -> its codes, scale, zero point and scheme.
        inner: class of the optimizer that updates latents, scales and zero points.
        lr: learning rate of the latent weights; None: there are none, and codes stay as they are, so that scales and
            zero points alone are trained, in a fraction of the memory.
        lr_in: what `lr` is counted in. "weights" is one number for all; "codes" is steps of the grid, so that all
            groups change their codes equally fast: whatever `inner` moves a latent by is multiplied by the scale that
            its group started from. "size" is a share of the root mean square of all weights that are trained, the same
            for models whose weights are ten times as large (arXiv 1804.04235, section 8).
        scale_lr: of the scales, relative to the scale itself; None freezes them.
        zero_lr: of the zero points, in codes; None freezes them, as does a grid on which they are fixed.
        other_lr: of everything else but embeddings and lm_head; None freezes it.
        train_embedding: train the embedding and the head, too, where they are quantized; else they stay as they are.
        weight_decay: of the latent weights.
        latents: start of the latent weights by layer, `(O, I)` in float32 or wider; they are clamped into the cells of
            their codes, so that the first forward pass is still the quantized model. Missing ones start at `w_hat`.
        reach: farthest a latent starts from its code's value, in steps of the grid; the border is at 0.5.

    Raises:
        ModelError: a layer that is not in the model, is tied to something else, or has another shape.
        RqatError: an unsuitable optimizer, or latents in 16 bits, which lose small updates without a word.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, QuantizedWeight],
        *,
        inner: type[torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float | None,
        lr_in: Literal["weights", "codes", "size"] = "weights",
        scale_lr: float | None = None,
        zero_lr: float | None = None,
        other_lr: float | None = None,
        train_embedding: bool = False,
        weight_decay: float = 0.0,
        latents: Mapping[str, Tensor] | None = None,
        reach: float = 0.5,
    ) -> None:
        _check_arguments(model, inner, {"lr": lr, "scale_lr": scale_lr, "zero_lr": zero_lr, "other_lr": other_lr})
        if inner.__name__ in UNSUITABLE:
            raise RqatError(
                f"optimizer '{inner.__name__}' cannot train quantized weights: {UNSUITABLE[inner.__name__]}.",
                hint=f"Use one of {', '.join(OPTIMIZERS)}.",
            )
        self.steps_done = 0
        self._in_codes, self.fixed_codes = lr_in == "codes" and lr is not None, lr is None
        self._trains_scale = scale_lr is not None
        self._trains_zero = zero_lr is not None
        weights = weights_of(model, layers)
        self._order = list(weights)
        still = {name for name in weights if name in ENDS and not train_embedding}
        self.trained = [name for name in weights if name not in still]
        others = other_parameters(model, weights) if other_lr is not None else {}
        trained = {id(weights[name]) for name in self.trained} | {id(p) for p in others.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self._split: list[tuple[nn.Parameter, nn.Parameter]] = []
        here = {name: self._here(weights[name]) for name in self.trained}
        weights = {name: weight for name, weight in here.items() if weight.numel()}
        self.others = {name: part for name, p in others.items() if (part := self._here(p)).numel()}
        self.frozen = {name: layers[name] for name in self._order if name not in weights}
        flat = OPTIMIZERS.get(inner.__name__, False)
        self.buckets = plan_buckets(weights, layers, latents or {}, flat=flat, reach=reach, fixed=lr is None)
        self._fixed = {name for name, layer in layers.items() if grid_of(scheme_of(layer)).fixed_zero}
        self.masters = {name: nn.Parameter(p.detach().float().clone()) for name, p in self.others.items()}

        groups: list[dict[str, Any]] = []
        if lr is not None:
            unit = root_mean_square(here.values(), bool(self._split)) if lr_in == "size" else 1.0
            latent = [bucket.latent for bucket in self.buckets]
            groups.append({"name": "latents", "params": latent, "lr": lr * unit, "weight_decay": weight_decay})
        if self._trains_scale:
            groups.append(
                {"name": "scales", "params": [b.ratio for b in self.buckets], "lr": scale_lr, "weight_decay": 0.0}
            )
        zeros = [bucket.zero for bucket in self.buckets if not bucket.grid.fixed_zero]
        if self._trains_zero and zeros:
            groups.append({"name": "zeros", "params": zeros, "lr": zero_lr, "weight_decay": 0.0})
        if self.masters:
            groups.append(
                {"name": "others", "params": list(self.masters.values()), "lr": other_lr, "weight_decay": 0.0}
            )
        if not groups:
            raise RqatError(
                "these layers have no zero points to train, and nothing else is trained.", hint="Give scale_lr."
            )
        accepted = inspect.signature(inner).parameters
        options: dict[str, Any] = {"fused": True} if "fused" in accepted else {}
        if "weight_decay" not in accepted:
            for group in groups:
                del group["weight_decay"]
        self.inner = inner(groups, **options)
        # The very same group dicts: a scheduler that sets this optimizer's learning rates sets the inner one's.
        super().__init__(self.inner.param_groups, self.inner.defaults)
        self._share_inner()
        self._write_model()

    def _here(self, parameter: nn.Parameter) -> nn.Parameter:
        """The rows of a split parameter that are here, in its memory, or the parameter itself."""
        if not is_part(parameter):
            return parameter
        rows = local(parameter)
        self._split.append((parameter, nn.Parameter(rows, requires_grad=False)))
        return self._split[-1][1]

    def _meet_model(self) -> None:
        """Takes the rows of split parameters from where they are now, and their gradients: `Module.to` moves them."""
        for parameter, rows in self._split:
            rows.data = local(parameter)
            rows.grad = None if parameter.grad is None else local(parameter.grad)

    def _share_inner(self) -> None:
        self.state = self.inner.state
        self.param_groups = self.inner.param_groups
        self._fused = FusedAdam(self.inner, in_codes=self._in_codes)

    # ------------------------------------------------------------------------------------------------ the step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update, in place, from the gradients that backward left on the model's parameters.

        Buckets are done one after the other, so that no more than one bucket's gradients exist beside the model's own.

        Raises:
            NumericsError: a gradient is not finite; names the layers. Nothing of the bucket has been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps_done += 1
        self._meet_model()
        fused = self._fused.taken(self.buckets)
        others = [parameter.grad for parameter in self.others.values() if parameter.grad is not None]
        if fused and not self._fused.step(fused, others):
            raise self._first_not_finite(fused)
        here = {id(bucket) for bucket in fused}
        rest = [bucket for bucket in self.buckets if id(bucket) not in here]
        for together in [rest] if self.fixed_codes else [[bucket] for bucket in rest]:
            self._step_buckets(together)
        self._step_others(checked=bool(fused))
        return loss

    def _first_not_finite(self, buckets: list[Bucket]) -> NumericsError:
        """Which of `buckets`, or else which parameter that is not quantized, has a gradient that is not finite."""
        for bucket in buckets:
            if not all_finite(weight.grad for weight in bucket.weights):
                return self._not_finite(bucket)
        return self._other_not_finite(next(name for name, p in self.others.items() if not all_finite([p.grad])))

    def _step_buckets(self, buckets: list[Bucket]) -> None:
        given = [bucket for bucket in buckets if self._map_gradient(bucket)]
        before = [bucket.rows.clone() if self._in_codes else None for bucket in given]
        if given:
            self.inner.step()
        for bucket, rows in zip(given, before, strict=True):
            if rows is not None:
                bucket.in_codes(rows)
            bucket.latent.grad = bucket.ratio.grad = bucket.zero.grad = None
            bucket.clamp_zero()
            bucket.write()

    def _map_gradient(self, bucket: Bucket) -> bool:
        """Gives a bucket's latents, scales and zero points their gradients; whether there are any."""
        grad = bucket.gradient()
        if grad is None:
            return False
        scale, zero = bucket.scale(), bucket.snapped_zero()
        gw, gs, gz = bucket.straight_through(grad, scale, zero)
        if not torch.isfinite(gs.sum()):
            raise self._not_finite(bucket)
        bucket.latent.grad = gw.view_as(bucket.latent)
        if self._trains_scale:
            bucket.ratio.grad = gs.mul_(scale)
        if self._trains_zero and not bucket.grid.fixed_zero:
            bucket.zero.grad = gz
        return True

    def _not_finite(self, bucket: Bucket) -> NumericsError:
        return NumericsError(
            f"step {self.steps_done}: the gradient of {bucket.describe()} is not finite.",
            hint="Lower the learning rate; the last lines of training.jsonl show where it starts.",
        )

    def _other_not_finite(self, name: str) -> NumericsError:
        return NumericsError(f"step {self.steps_done}: the gradient of '{name}' is not finite.", hint="Lower other_lr.")

    def _step_others(self, *, checked: bool) -> None:
        if not self.masters:
            return
        wide, given = [], []
        for name, master in self.masters.items():
            grad = self.others[name].grad
            if grad is None:
                continue
            if not checked and not torch.isfinite(grad).all():
                raise self._other_not_finite(name)
            master.grad = torch.empty_like(master)
            wide.append(master.grad)
            given.append(grad)
        # One call for all: there are hundreds, and each is tiny.
        if given:
            torch._foreach_copy_(wide, given)
        self.inner.step()
        for master in self.masters.values():
            master.grad = None
        self._write_others()

    @torch.no_grad()
    def _write_others(self) -> None:
        """Puts what is not quantized into the model, rounded to bfloat16."""
        if self.masters:
            rounded = [master.to(torch.bfloat16) for master in self.masters.values()]
            torch._foreach_copy_([parameter.detach() for parameter in self.others.values()], rounded)

    def _write_model(self) -> None:
        self._meet_model()
        with torch.no_grad():
            for bucket in self.buckets:
                bucket.write()
            self._write_others()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the model's trained parameters."""
        split = [parameter for parameter, _ in self._split]
        for parameter in [*(w for b in self.buckets for w in b.weights), *self.others.values(), *split]:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    # ------------------------------------------------------------------------------------------------ what is held

    @torch.no_grad()
    def quantized_layers(self) -> dict[str, QuantizedWeight]:
        """Codes, scales and zero points of every layer, as they are in the model now, for saving."""
        found = self.frozen | {name: weight for bucket in self.buckets for name, weight in bucket.quantized()}
        return {name: found[name] for name in self._order}

    @torch.no_grad()
    def latents(self) -> dict[str, Tensor]:
        """Latent weights `(O, I)` of every layer that is trained: views, not copies."""
        return {name: latent for bucket in self.buckets for name, latent in bucket.latents()}

    @torch.no_grad()
    def digest(self) -> str:
        """Of all that is trained, to compare processes by: equal bits give equal digests, and others hardly ever do."""
        trained = [tensor for bucket in self.buckets for tensor in bucket.state().values()]
        sums = [sum_of_bits(tensor) for tensor in [*trained, *self.masters.values()]]
        return fingerprint_of(torch.stack(sums).tolist())

    def state_dict(self, *, moments: bool = True) -> dict[str, Any]:
        """Everything a bit-equal resume needs: plain dicts, lists, numbers and tensors.

        Args:
            moments: that of the inner optimizer, too, without which no further step can be taken.
        """
        return {
            "format": FORMAT,
            "scheme": self._schemes(),
            "steps_done": self.steps_done,
            "layout": [bucket.layout() for bucket in self.buckets],
            "buckets": [bucket.state() for bucket in self.buckets],
            "masters": {name: master.detach() for name, master in self.masters.items()},
            "inner": self.inner.state_dict() if moments else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict` for the same model, and writes the weights it stands for into the model.

        Raises:
            RunError: the state is of another scheme, other layers or other shapes.
        """
        mine, theirs = self._identity(), _identity_of(state_dict)
        wrong = [key for key in mine if mine[key] != theirs.get(key)]
        if wrong:
            raise RunError(
                f"the saved optimizer state does not fit this model: {', '.join(wrong)} differ.",
                hint="Delete the step's .partial folder to train it from its start.",
            )
        for bucket, saved in zip(self.buckets, state_dict["buckets"], strict=True):
            bucket.load(saved)
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state_dict["masters"][name])
        self.steps_done = int(state_dict["steps_done"])
        if state_dict["inner"] is not None:
            self.inner.load_state_dict(state_dict["inner"])
        self._share_inner()
        self._write_model()

    def load_parts(self, saved: Sequence[dict[str, Any]], share: Share) -> None:
        """Takes over the states that several processes saved of their rows, or one of all, where this one has others.

        Args:
            saved: `state_dict` of each, by rank.
            share: the rows that are here.

        Raises:
            RunError: see `load_state_dict`. KeyError, ValueError: likewise.
        """
        self.load_state_dict(regrouped(saved, self.state_dict(), share, self._fixed))

    def _schemes(self) -> str:
        """The scheme of all buckets, or those of each where they differ."""
        spelled = [str(bucket.grid.scheme) for bucket in self.buckets]
        return ", ".join(spelled if len(set(spelled)) > 1 else spelled[:1])

    def _identity(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "scheme": self._schemes(),
            "layers": [bucket.layout() for bucket in self.buckets],
            "other parameters": {name: tuple(master.shape) for name, master in self.masters.items()},
        }


def _identity_of(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": state.get("format"),
        "scheme": state.get("scheme"),
        "layers": state.get("layout"),
        "other parameters": {name: tuple(master.shape) for name, master in state.get("masters", {}).items()},
    }


def _check_arguments(model: Any, inner: Any, rates: Mapping[str, Any]) -> None:
    """Refuses what would fail later with less to say."""
    if not isinstance(model, nn.Module):
        raise RqatError(
            f"QuantizedOptimizer trains a model of torch, not a {type(model).__name__}.",
            hint="Of what rqat.quantize and rqat.load return: `quantized.optimizer(lr=...)`.",
        )
    if not (inspect.isclass(inner) and issubclass(inner, torch.optim.Optimizer)):
        raise RqatError(f"inner={inner!r} is not a class of optimizers.", hint="Give one: inner=torch.optim.AdamW.")
    for name, rate in rates.items():
        number = isinstance(rate, (int, float, Tensor)) and not isinstance(rate, bool)
        if rate is not None and not (number and rate >= 0):
            raise RqatError(f"{name}={rate!r} is not a learning rate.", hint="Give a number of 0 or more.")
    if all(rate is None for rate in rates.values()):
        raise RqatError(
            "lr=None and no other rate: nothing is trained.",
            hint="Give lr=2e-5 for the latent weights, or scale_lr=5e-4 for the scales.",
        )
