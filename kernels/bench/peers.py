"""Other libraries' packed linears, each made from the same codes; a library that is not installed is Absent.

All take `codes (O, I)` uint8, `scale (O, G)` and `zero (O, G)` float32 with groups of 128 input features, and give a
contender that computes `x w_hat^T` for `x (M, I)` bfloat16.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
from torch import Tensor

from .bench import Absent
from .shapes import GROUP
from .timing import Contender, copies_for


def library(name: str) -> Any:
    """The module of that name.

    Raises:
        Absent: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Absent(f"{name} does not import: {type(error).__name__}: {error}") from None


def cublas(weight: Tensor, x: Tensor) -> Contender:
    """The 16-bit linear `x weight^T` of torch."""
    weights = [weight.clone() for _ in range(copies_for(weight.nbytes))]
    return Contender(lambda i: torch.nn.functional.linear(x, weights[i % len(weights)]), len(weights))


def int4(codes: Tensor, scale: Tensor, zero: Tensor, x: Tensor) -> Contender:
    """Torch's own 4-bit linear: `(q - 8) s + z'`, so `z' = (8 - z) s`."""
    nibbles = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack(nibbles, 8)
    params = torch.stack([scale, (8 - zero) * scale], -1).transpose(0, 1).contiguous().to(torch.bfloat16)
    count = copies_for(packed.nbytes + params.nbytes)
    inputs = [(packed.clone(), params.clone()) for _ in range(count)]

    def call(i: int) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x, inputs[i % count][0], GROUP, inputs[i % count][1])

    return Contender(call, count)


def gemlite(codes: Tensor, scale: Tensor, zero: Tensor, bits: int, x: Tensor) -> Contender:
    """gemlite's Triton kernels (2 and 4 bits), tuned by themselves at their default setting."""
    library_ = library("gemlite")
    out, features = codes.shape
    kind = library_.DType.BF16
    layer = library_.GemLiteLinear(bits, GROUP, features, out, input_dtype=kind, output_dtype=kind)
    layer.pack(codes.clone(), scale.to(torch.bfloat16), zero.to(torch.bfloat16))
    return _modules(layer, codes.numel() * bits / 8, x)


def humming(weight: Tensor, bits: int, x: Tensor) -> Contender:
    """Humming's CUDA kernels, compiled on the spot; it rounds `weight` to its own symmetric grid."""
    layers = library("humming.layer")
    out, features = weight.shape
    config = {"dtype": f"int{bits}", "group_size": GROUP}
    layer = layers.HummingLayer(shape_n=out, shape_k=features, weight_config=config, torch_dtype=torch.bfloat16).cuda()
    layer.load_from_unquantized(weight)
    layer.transform()
    return _modules(layer, weight.numel() * bits / 8, x)


def _modules(layer: torch.nn.Module, n_bytes: float, x: Tensor) -> Contender:
    count = copies_for(n_bytes)
    modules = [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]

    def call(i: int) -> Tensor:
        with torch.no_grad():
            return modules[i % count](x)

    return Contender(call, count)
