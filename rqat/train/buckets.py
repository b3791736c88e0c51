"""Buckets: the latent weights of several layers, laid out as one tensor of groups.

All the grid knows about is a group of `g` weights with its own scale and zero point, contiguous in memory. So layers of
any shape can be stacked as `(R, g)`, one group per row, and treated with a handful of large operations instead of a
dozen small ones per layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rqat_kernels.latent_adam import scale_of

from ..contracts import Grid, QuantizedWeight
from ..errors import ModelError, RqatError
from ..figures import few
from ..grids import grid_of
from ..model.checkpoint import scheme_of

LARGEST = 1 << 24
"""Weights in one bucket, unless a single layer has more: temporaries stay below some 64 MiB each."""

PIECE = {"cpu": 1 << 17}
"""Weights mapped at once, by device: on a CPU a dozen passes over what stays in the cache are three times as fast."""


@dataclass
class Bucket:
    """Layers of one scheme, trained together. `R` rows (groups) of `g` weights; float32 (float64 for a float64 model).

    Attributes:
        grid: what they are on.
        names: the layers, in the order in which they are stacked.
        weights: the model's parameters, `(O, I)`; they hold `w_hat`.
        latent: `w`, `(R, g)`; `(O, I)` for optimizers that look at whole matrices.
        origin: `s_0 (R, 1)`, the scale training started from.
        ratio: `r (R, 1)`, log of the scale relative to `origin`.
        zero: `z (R, 1)` as it is trained, not snapped.
        group: `g`.
    """

    grid: Grid
    names: list[str]
    weights: list[nn.Parameter]
    latent: nn.Parameter
    origin: Tensor
    ratio: nn.Parameter
    zero: nn.Parameter
    group: int

    @property
    def rows(self) -> Tensor:
        """The latents as `(R, g)`."""
        return self.latent.detach().view(-1, self.group)

    def scale(self) -> Tensor:
        """`s (R, 1)`, snapped, as it is in the model."""
        if self.grid.uniform:  # as the fused kernel computes it, to the bit
            return scale_of(self.origin, self.ratio.detach())
        return self.grid.snap(self.origin * self.ratio.detach().exp())

    def snapped_zero(self) -> Tensor:
        """`z (R, 1)`, as it is in the model."""
        return self.grid.snap_zero(self.zero.detach())

    def clamp_zero(self) -> None:
        """Keeps whole zero points on the range of the codes."""
        if self.grid.whole_zeros:
            self.zero.clamp_(0, self.grid.scheme.max_code)

    def gradient(self) -> Tensor | None:
        """Gradients on `w_hat`, `(R, g)`; None when no layer has one. A layer without a gradient counts as zero."""
        if all(weight.grad is None for weight in self.weights):
            return None
        dtype = self.latent.dtype
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        if len(grads) == 1:
            return grads[0].to(dtype).reshape(-1, self.group)
        return torch.cat([grad.to(dtype).reshape(-1, self.group) for grad in grads])

    def values(self, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """`w_hat (R, g)` of some of the rows."""
        return self.grid.requantize(rows, scale, zero)

    def codes_of(self, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes `(R, g)` of some of the rows."""
        return self.grid.quantize(rows, scale, zero)

    def straight_through(self, grad: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The grid's gradients of latent, scale and zero point for `grad (R, g)`, piece by piece."""
        rows = self.rows
        gw, gs, gz = torch.empty_like(rows), rows.new_empty(scale.shape), rows.new_empty(scale.shape)
        for part in pieces(rows):
            gw[part], gs[part], gz[part] = self.grid.gradients(grad[part], rows[part], scale[part], zero[part])
        return gw, gs, gz

    def in_codes(self, before: Tensor) -> None:
        """Multiplies what an optimizer has just moved the latents by, from `before (R, g)` on, by `s_0`."""
        self.rows.sub_(before).mul_(self.origin).add_(before)

    def write(self) -> None:
        """Puts `w_hat` into the model, in place."""
        parts = map(self._split, (self.rows, self.scale(), self.snapped_zero()))
        for weight, rows, scale, zero in zip(self.weights, *parts, strict=True):
            into = weight.detach().view(rows.shape)
            for part in pieces(rows):
                into[part] = self.values(rows[part], scale[part], zero[part])

    def quantized(self) -> Iterator[tuple[str, QuantizedWeight]]:
        """Every layer's codes `(O, I)`, scale and zero point `(O, G)`, in the dtypes in which they are stored."""
        scale, zero = self.scale(), self.snapped_zero()
        rows = self.rows
        codes = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
        for piece in pieces(rows):
            codes[piece] = self.codes_of(rows[piece], scale[piece], zero[piece])
        parts = zip(self.names, self.weights, *map(self._split, (codes, scale, zero)), strict=True)
        for name, weight, layer_codes, layer_scale, layer_zero in parts:
            out = weight.shape[0]
            codes = layer_codes.reshape(weight.shape).clone()
            own = (layer_scale.reshape(out, -1).clone(), layer_zero.reshape(out, -1).clone())
            yield name, self.grid.layer(codes, *own)

    def latents(self) -> Iterator[tuple[str, Tensor]]:
        """Every layer's latents `(O, I)`."""
        for name, weight, part in zip(self.names, self.weights, self._split(self.rows), strict=True):
            yield name, part.view(weight.shape)

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([weight.numel() // self.group for weight in self.weights])

    def layout(self) -> list[Any]:
        """What must be equal for a saved state to fit: names and shapes, as plain values."""
        return [[name, *weight.shape] for name, weight in zip(self.names, self.weights, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; not copies."""
        return {
            "latent": self.latent.detach(),
            "origin": self.origin,
            "ratio": self.ratio.detach(),
            "zero": self.zero.detach(),
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a `state` of the same layout."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def describe(self) -> str:
        """The layers, for an error message."""
        return few([f"'{name}'" for name in self.names], kind="layers")


@dataclass
class FixedBucket(Bucket):
    """Layers whose codes stay as they are: scales and zero points alone are trained (arXiv 2407.11062, 3.3).

    Attributes:
        codes: `(R, g)` uint8, in place of `latent`, which has no element.
    """

    codes: Tensor

    @property
    def rows(self) -> Tensor:
        """The codes."""
        return self.codes

    def values(self, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """See `Bucket`."""
        return self.grid.decode(rows, scale, zero)

    def codes_of(self, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """See `Bucket`."""
        return rows

    def straight_through(self, grad: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of scale and zero point: the codes do not depend on them, so nothing is passed straight."""
        gs, gz = scale.new_empty(scale.shape), scale.new_empty(scale.shape)
        for part in pieces(self.codes):
            gs[part], gz[part] = self.grid.code_gradients(grad[part], self.codes[part], scale[part], zero[part])
        return grad.new_empty(0), gs, gz

    def latents(self) -> Iterator[tuple[str, Tensor]]:
        """None."""
        return iter(())

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, which the codes are not among: they are those of the start."""
        return {name: tensor for name, tensor in super().state().items() if name != "latent"}


def pieces(rows: Tensor) -> Iterator[slice]:
    """`rows (R, g)` in slices that are mapped at once; see `PIECE`."""
    piece = max(1, PIECE.get(rows.device.type, rows.numel()) // max(1, rows.shape[1]))
    return (slice(start, start + piece) for start in range(0, len(rows), piece))


def plan_buckets(
    weights: Mapping[str, nn.Parameter],
    layers: Mapping[str, QuantizedWeight],
    latents: Mapping[str, Tensor],
    *,
    flat: bool,
    reach: float = 0.5,
    fixed: bool = False,
) -> list[Bucket]:
    """Stacks neighbouring layers of one scheme, group size, device and dtype up to `LARGEST` weights; singly unless
    `flat`. Their codes are not trained if `fixed`.
    """
    runs: list[list[str]] = []
    key_of_last: tuple[Any, ...] = ()
    size = 0
    for name, weight in weights.items():
        _check(name, weight, layers[name])
        scheme = scheme_of(layers[name])
        key = (scheme, scheme.group_size(weight.shape[1]), weight.device, _master_dtype(weight))
        if runs and flat and key == key_of_last and size + weight.numel() <= LARGEST:
            runs[-1].append(name)
            size += weight.numel()
        else:
            runs.append([name])
            size = weight.numel()
        key_of_last = key
    return [_bucket(names, weights, layers, latents, flat=flat, reach=reach, fixed=fixed) for names in runs]


@torch.no_grad()
def _bucket(
    names: list[str],
    weights: Mapping[str, nn.Parameter],
    layers: Mapping[str, QuantizedWeight],
    latents: Mapping[str, Tensor],
    *,
    flat: bool,
    reach: float,
    fixed: bool,
) -> Bucket:
    grid = grid_of(scheme_of(layers[names[0]]))
    own = [weights[name] for name in names]
    dtype, device = _master_dtype(own[0]), own[0].device
    group = grid.scheme.group_size(own[0].shape[1])

    def stacked(part: str, width: int) -> Tensor:
        return torch.cat([layers[name].state()[part].to(device).reshape(-1, width) for name in names])

    scale, zero = stacked("scale", 1).to(dtype), stacked("zero", 1).to(dtype)
    shared: dict[str, Any] = {
        "grid": grid,
        "names": names,
        "weights": own,
        "origin": scale,
        "ratio": nn.Parameter(torch.zeros_like(scale)),
        "zero": nn.Parameter(zero),
        "group": group,
    }
    if fixed:
        none = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        return FixedBucket(**shared, latent=none, codes=stacked("codes", group))
    latent = torch.empty(len(scale), group, dtype=dtype, device=device)
    counts = [weight.numel() // group for weight in own]
    parts = zip(names, own, *(each.split(counts) for each in (latent, scale, zero)), strict=True)
    for name, weight, rows, own_scale, own_zero in parts:
        codes = layers[name].codes.to(device).reshape(-1, group)
        start = None
        if name in latents:
            start = _checked_latent(name, latents[name], weight).to(device, dtype).reshape(-1, group)
        for part in pieces(rows):
            if start is None:
                rows[part] = grid.decode(codes[part], own_scale[part], own_zero[part])
            else:
                rows[part] = into_cells(start[part], codes[part], own_scale[part], own_zero[part], grid, reach=reach)
    return Bucket(**shared, latent=nn.Parameter(latent if flat else latent.view(own[0].shape)))


def into_cells(latent: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, grid: Grid, *, reach: float = 0.5) -> Tensor:
    """`latent (R, g)` clamped to within `reach * s` of its code's value, so that it still quantizes to `codes`."""
    centre = grid.decode(codes, scale, zero)
    clamped = torch.minimum(torch.maximum(latent, centre - reach * scale), centre + reach * scale)
    # A tie may round to the neighbour, and cells may be narrower: where the code is another, stay at the centre.
    return torch.where(grid.quantize(clamped, scale, zero) == codes, clamped, centre)


def _master_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _checked_latent(name: str, latent: Tensor, weight: Tensor) -> Tensor:
    if latent.dtype not in (torch.float32, torch.float64):
        raise RqatError(
            f"latents of '{name}' are {str(latent.dtype).removeprefix('torch.')}, which would lose small updates.",
            hint="Give them in float32.",
        )
    if latent.shape != weight.shape:
        raise ModelError(f"latents of '{name}' are {tuple(latent.shape)}, the layer is {tuple(weight.shape)}.")
    return latent


def _check(name: str, weight: Tensor, layer: QuantizedWeight) -> None:
    (out, features), scheme = weight.shape, scheme_of(layer)
    groups = (out, scheme.groups(features)) if scheme.divides(features) else None
    if layer.codes.shape != weight.shape or layer.scale.shape != groups or layer.zero.shape != groups:
        raise ModelError(
            f"quantized layer '{name}': codes {tuple(layer.codes.shape)}, scale {tuple(layer.scale.shape)} and zero "
            f"{tuple(layer.zero.shape)} do not fit a weight of {tuple(weight.shape)} in scheme {scheme}.",
            hint="Quantize the model again with this scheme.",
        )


def sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum of the numbers read as integers, modulo 2^64: as exact as it is in any order. On the CPU."""
    integer = torch.int64 if tensor.element_size() == 8 else torch.int32
    return tensor.detach().contiguous().view(integer).sum(dtype=torch.int64).cpu()
