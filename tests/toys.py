"""A network small enough to train in a test, quantized, with the optimizer over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rqat.contracts import QuantizedWeight
from rqat.scheme import Scheme
from rqat.train.optimizer import QuantizedOptimizer
from rqat_kernels.grid import dequantize, fit_minmax, quantize


def quantized(model: nn.Module, scheme: Scheme) -> dict[str, QuantizedWeight]:
    """Rounds every linear layer of `model` in place."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            scale, zero = fit_minmax(
                weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric
            )
            codes = quantize(weight, scale, zero, scheme.max_code)
            layers[name] = QuantizedWeight(codes, scale, zero.to(torch.uint8), scheme=scheme)
            weight.copy_(dequantize(layers[name].codes, scale, zero, weight.dtype))
    return layers


def toy(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 32, bias=False)).to(dtype)


def built(
    scheme: Scheme, dtype: torch.dtype = torch.float32, device: str = "cpu", **options: Any
) -> tuple[nn.Sequential, QuantizedOptimizer]:
    model = toy(dtype)
    layers = quantized(model, scheme)
    model.to(device)
    options = {"lr": 1e-2, "scale_lr": 1e-2, "zero_lr": 1e-2, "other_lr": 1e-2, **options}
    return model, QuantizedOptimizer(model, layers, **options)


def backward(model: nn.Module, seed: int, rows: int = 8, share: float = 1.0) -> float:
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    x, y = torch.randn(rows, 32, generator=generator).to(like), torch.randn(rows, 32, generator=generator).to(like)
    loss = (model(x) - y).square().mean() * share
    loss.backward()
    return loss.item()
