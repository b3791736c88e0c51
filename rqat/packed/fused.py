"""Linear layers that read the same input, as one: q, k and v; gate and up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rqat_kernels.decode import silu_mul
from rqat_kernels.packed_linear import PackedLinear
from rqat_kernels.packing import PackedWeight


def fuse(*layers: nn.Module) -> Callable[[Tensor], Tensor]:
    """One call in place of several, whose outputs stand side by side.

    The layers become views of the one weight and the one bias, so that nothing is stored twice (but scales and zero
    points of packed weights), and what is written into a layer in place, as optimizers do, counts here at once. Layers
    of different kinds, on different grids, or that do more than multiply by a weight, are called one by one.
    """
    if all(is_plain(layer) for layer in layers):
        return _fuse_plain(layers)  # type: ignore[arg-type]
    if all(isinstance(layer, PackedLinear) and is_bare(layer) for layer in layers):
        kinds = {(layer.in_features, layer.bits, layer.group) for layer in layers}
        if len(kinds) == 1:
            return _fuse_packed(layers)  # type: ignore[arg-type]
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear layer and nothing else, whatever its class says.

    Libraries that keep weights compressed leave `nn.Linear` in place, take its `weight` away and give it another
    `forward` (compressed-tensors does).
    """
    return type(layer) is nn.Linear and isinstance(layer._parameters.get("weight"), nn.Parameter) and is_bare(layer)


def is_bare(module: nn.Module) -> bool:
    """Whether calling a module runs the `forward` of its class, and nothing before or after it."""
    return not (module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


def fuse_swiglu(*gate_up: nn.Module) -> Callable[[Tensor], Tensor]:
    """`silu(gate(x)) * up(x)`, as one call for packed layers; see `fuse`."""
    both = fuse(*gate_up)
    return both.swiglu if isinstance(both, PackedLinear) else lambda x: silu_mul(both(x))


def _fuse_plain(layers: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    parts = [layer.weight.detach() for layer in layers]
    weight = _side_by_side(parts)
    if weight is None:
        weight = torch.cat(parts)
        for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part
    bias = _biases(layers)
    return lambda x: nn.functional.linear(x, weight, bias)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose consecutive rows `parts` are, where they already are: two engines may share a model."""
    first, end = parts[0], parts[0].storage_offset()
    for part in parts:
        elsewhere = part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        if elsewhere or part.storage_offset() != end or not part.is_contiguous():
            return None
        end += part.numel()
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def _fuse_packed(layers: Sequence[PackedLinear]) -> Callable[[Tensor], Tensor]:
    weights = [layer.weight for layer in layers]
    params = [weight.params for weight in weights]
    if len({part.dtype for part in params}) > 1:
        params = [part.float() for part in params]
    extras = [weight.extra for weight in weights if weight.extra is not None]
    fused = PackedWeight(
        sum(layer.out_features for layer in layers),
        layers[0].in_features,
        layers[0].bits,
        layers[0].group,
        torch.cat([weight.words for weight in weights]),
        torch.cat(extras) if extras else None,
        torch.cat(params, dim=1),
    )
    start = 0
    for layer in layers:
        stop = start + layer.out_features
        layer.words = fused.words[start:stop]
        if fused.extra is not None:
            layer.extra = fused.extra[start:stop]
        start = stop
    return PackedLinear(fused, _biases(layers))


def _biases(layers: Sequence[nn.Linear] | Sequence[PackedLinear]) -> Tensor | None:
    """All biases side by side, of which the layers' own become views, 0 for those without; None when none has one."""
    found: list[Tensor | None] = [layer.bias if layer.bias is None else layer.bias.detach() for layer in layers]
    there = [bias for bias in found if bias is not None]
    if not there:
        return None
    together = _side_by_side(there) if len(there) == len(found) else None
    if together is not None:
        return together
    widths = [int(layer.out_features) for layer in layers]
    whole = torch.cat([there[0].new_zeros(n) if bias is None else bias for n, bias in zip(widths, found, strict=True)])
    for layer, part in zip(layers, whole.split(widths), strict=True):
        if layer.bias is not None:
            layer.bias.data = part
    return whole
