"""A layer's GPTQ by the class that GPTQModel has for one, given the Hessian that rqat has collected."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rqat

from . import INSTALL, MISSING, Options, installed

ROUNDED = "rounded to nearest: "


class GptqModel(rqat.Quantizer):
    """GPTQModel's `GPTQ` on one layer after the other; its grids have scales that rqat can store.

    Raises:
        MissingPackage: GPTQModel is not installed.
    """

    needs: ClassVar[frozenset[rqat.Statistic]] = frozenset({"hessian"})
    tied_ends: ClassVar[bool] = True
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        if installed() is None:
            raise rqat.MissingPackage(MISSING, hint=INSTALL)

    @torch.no_grad()
    def quantize_linear(self, weight: Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`.

        Raises:
            NumericsError: the Hessian or the weight is not finite.
        """
        weight, hessian = weight.float(), stats.hessian
        if hessian is None:
            raise rqat.PluginError("gptqmodel was called without a Hessian.", hint="Collect what its `needs` asks for.")
        for what, tensor in (("weight", weight), ("Hessian", hessian)):
            if not torch.isfinite(tensor).all():
                raise rqat.NumericsError(f"a {what} of shape {tuple(tensor.shape)} is not finite.")
        grid = rqat.grid_of(scheme)
        if not bool((hessian.diagonal() > 0).any()):
            note = f"{ROUNDED}its input was never seen, or always zero"
            return grid.quantize_layer(weight, *grid.fit_layer(weight), note)
        task = self._task(weight, scheme)
        task.H = hessian.to(weight.device, torch.float32, copy=True)  # it writes into it
        task.nsamples = stats.tokens
        values, scale, zero, _, _, loss, damp, _ = task.quantize()
        size = scheme.group_size(weight.shape[1])
        rows = values.float().view(len(weight), -1, size) / scale[..., None] + zero[..., None]
        codes = rows.round_().clamp_(0, scheme.max_code).byte().view(weight.shape)
        return grid.layer(codes, scale, zero, _note(loss, damp, task.qcfg.damp_percent))

    def _task(self, weight: Tensor, scheme: rqat.Scheme) -> Any:
        """GPTQModel's object for a layer, set up as its own walk through a model does."""
        config, task_of = _package()
        order = self.options.act_order
        given = {} if self.options.damp is None else {"damp_percent": self.options.damp}
        made = config(
            bits=scheme.bits,
            group_size=scheme.group_size(weight.shape[1]),
            sym=scheme.symmetric,
            mse=self.options.mse,
            desc_act=order is True,
            static_groups=order is True,
            act_group_aware=order == "groups",
            offload_to_disk=False,
            **given,
        )
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        task = task_of(layer, made)
        task.quantizer.configure(perchannel=True)
        return task


def _note(loss: Any, damp: float, asked: float) -> str:
    """What the report should say: GPTQModel puts a name in the place of the loss of what it could not solve."""
    if isinstance(loss, str):
        return f"{ROUNDED}GPTQModel found its Hessian not positive definite"
    return "" if damp == asked else f"damping raised from {asked:g} to {damp:g}"


@cache
def _package() -> tuple[Any, Any]:
    """GPTQModel's configuration, and its class for a layer with a grid whose scales bfloat16 and float16 hold.

    The scales are rounded where a group is fitted, so that the columns still to come make up for that, too.
    """
    from rqat_kernels.grid import snap_scale

    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        from gptqmodel.quantization import GPTQ, QuantizeConfig
        from gptqmodel.quantization.quantizer import Quantizer

    class Stored(Quantizer):
        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight)
            self.scale: Any = snap_scale(self.scale)

    class Task(GPTQ):
        def create_quantizer(self, name: str) -> Any:
            return Stored(qcfg=self.qcfg, name=name)

    return QuantizeConfig, Task
