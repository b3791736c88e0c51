"""A step of the quantized optimizer against fused AdamW on as many 16- or 32-bit weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import GROUP, MODELS, Model
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender

OPS = ("optimizer", "latent_adam")
BITS = 2
BLOCKS = {"0.6b": 28, "8b": 2}
"""Blocks of each model that are made: all of the small one, two of the large one, which fill memory all the same."""


def jobs() -> list[Job]:
    """One step per model."""
    return [
        Job("latent_adam", "odd shapes", 2, _check, check=True),
        *(
            Job("optimizer", name, 2, lambda bench, name=name: _time(bench, MODELS[name]), 5 + place, 12)
            for place, name in enumerate(BLOCKS)
        ),
    ]


def layers_of(bench: Bench, model: nn.Module, names: list[str]) -> dict[str, Any]:
    """Codes, scales and zero points for the linears `names`, as a minmax grid gives them for their weights."""
    from rqat import QuantizedWeight, Scheme
    from rqat_kernels.grid import fit_minmax, quantize

    found, scheme = {}, Scheme(bits=BITS, group=GROUP)
    for name in names:
        weight = model.get_parameter(f"{name}.weight").detach().float()
        scale, zero = fit_minmax(weight, weight.shape[1] // GROUP, 2**BITS - 1, symmetric=False)
        codes = quantize(weight, scale, zero, 2**BITS - 1)
        found[name] = QuantizedWeight(codes=codes, scale=scale, zero=zero.to(torch.uint8), scheme=scheme)
    return found


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.grid import fit_minmax
    from rqat_kernels.latent_adam import Rates, latent_adam, reference

    rates = Rates(1e-2, 1e-2, 1e-1, 0.1, True, 0.9, 0.99, 1e-8, 3)
    for shapes, group in ((((20, 128), (3, 256)), 128), (((6, 64), (3, 96)), 32)):
        rows = sum(out * inp for out, inp in shapes) // group
        w = bench.normal(rows, group, dtype=torch.float32)
        scale, zero = fit_minmax(w, 1, 2**BITS - 1, symmetric=False)
        moments = [bench.normal(rows, size, dtype=torch.float32, scale=0.1) for size in (group, 1, 1)]
        squares = [bench.normal(rows, size, dtype=torch.float32).square_() for size in (group, 1, 1)]
        start: dict[str, Any] = {
            "weights": [torch.full(shape, torch.nan, device=bench.device, dtype=torch.bfloat16) for shape in shapes],
            "grads": [bench.normal(*shape) for shape in shapes],
            "latent": [1.2 * w, moments[0], squares[0]],
            "origin": scale,
            "ratio": [bench.normal(rows, 1, dtype=torch.float32, scale=1e-2), moments[1], squares[1]],
            "zero": [zero + bench.normal(rows, 1, dtype=torch.float32, scale=0.3), moments[2], squares[2]],
        }
        exact: dict[str, Any] = {
            key: value.double() if isinstance(value, torch.Tensor) else [tensor.double() for tensor in value]
            for key, value in start.items()
        }
        with poisoned():
            latent_adam(*start.values(), 2**BITS - 1, rates)
        reference.latent_adam(*exact.values(), 2**BITS - 1, rates)
        error = max(relative(start[key][0], exact[key][0]) for key in ("latent", "ratio", "zero"))
        # A weight whose quotient lies on the border of two codes in float32 only changes the sums of its group.
        yield bench.checked("latent_adam", f"g{group}", error, 1e-3)
        pairs = zip(start["weights"], exact["weights"], strict=True)
        wrong = max(((w - e).abs() > 0.01 * e.abs() + 1e-6).double().mean().item() for w, e in pairs)
        whole = all(torch.isfinite(w).all() for w in start["weights"])
        yield bench.checked("latent_adam", f"g{group} weights", wrong if whole else math.inf, 0.01)


def _body(bench: Bench, model: Model) -> nn.Module:
    """The linears of the model's blocks, without anything between them."""
    body = nn.Module()
    for block in range(1 if bench.small else BLOCKS[model.name]):
        for place, (out, inp) in enumerate(shape for group in model.separate.values() for shape in group):
            out, inp = (32, 128) if bench.small else (out, inp)
            linear = nn.Linear(inp, out, bias=False, device=bench.device, dtype=torch.bfloat16)
            linear.weight.data = bench.normal(out, inp, scale=inp**-0.5)
            linear.weight.grad = bench.normal(out, inp, scale=1e-3)
            body.add_module(f"block{block}_linear{place}", linear)
    return body


def _time(bench: Bench, model: Model) -> Iterator[Row]:
    from rqat.train.optimizer import QuantizedOptimizer

    body = _body(bench, model)
    names = [name for name, _ in body.named_children()]
    rates = {"lr": 1e-5, "scale_lr": 1e-4, "zero_lr": 1e-4}
    ours = QuantizedOptimizer(body, layers_of(bench, body, names), **rates)
    weights = list(body.parameters())
    half = torch.optim.AdamW(weights, lr=1e-5, fused=True)
    wide = [nn.Parameter(w.detach().float()) for w in weights]
    for parameter, weight in zip(wide, weights, strict=True):
        parameter.grad = weight.grad.float()  # type: ignore[union-attr]
    full = torch.optim.AdamW(wide, lr=1e-5, fused=True)
    contenders = {
        "rqat": Contender(lambda i: ours.step(), graph=False),
        "rqat in torch": Contender(plain_torch(lambda i: ours.step()), graph=False),
        "adamw bf16": Contender(lambda i: half.step(), graph=False),
        "adamw fp32": Contender(lambda i: full.step(), graph=False),
    }
    count = sum(weight.numel() for weight in weights)
    # Read D in 16 bits, w, m, v; write w, m, v and w_hat in 16 bits. AdamW: the gradient, weight and both moments.
    least = {"": (28.0 * count, 0.0), "adamw bf16": (14.0 * count, 0.0), "adamw fp32": (28.0 * count, 0.0)}
    base = Row("optimizer", "", "step", x_name="weights", x=count, config={"model": model.name})
    yield from bench.compare(base, contenders, baseline="adamw bf16", limits=least, rounds=7)
