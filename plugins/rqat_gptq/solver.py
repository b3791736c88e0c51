"""GPTQ over the layers of a block: one factorization and one column loop for all layers that read the same input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

import rqat
from rqat_kernels.gptq_block import gptq_block
from rqat_kernels.grid import fit_clip, fit_ends, fit_minmax

from . import Options
from .any_grid import gptq_on
from .refit import refit_scales

DAMPING_RAISES = 4
"""How often the damping is raised tenfold before a layer is rounded to nearest instead."""


class Gptq(rqat.Quantizer):
    """GPTQ (arXiv 2210.17323, algorithm 1) with damping that is raised when it does not suffice."""

    needs: ClassVar[frozenset[rqat.Statistic]] = frozenset({"hessian"})
    tied_ends: ClassVar[bool] = True
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.in_turn = options.true_sequential  # type: ignore[misc]

    def quantize_linear(self, weight: Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`.

        Raises:
            NumericsError: the Hessian or the weight is not finite.
        """
        weight = weight.float()
        if not torch.isfinite(weight).all():
            raise rqat.NumericsError(
                f"a weight of shape {tuple(weight.shape)} is not finite.", hint="Check the checkpoint it came from."
            )
        hessian = _checked(stats.hessian, weight)
        alive = hessian.diagonal() > 0
        if not alive.any():
            return self._rounded(weight, scheme, note="rounded to nearest: its input was never seen, or always zero")
        weight = weight * alive  # what meets only zeros has no effect, and must not widen a span
        if self.options.shrink:
            hessian = hessian * (1 - self.options.shrink) + torch.diag(hessian.diagonal() * self.options.shrink)
        order = self._order(hessian.diagonal(), scheme)
        asked = self.options.damp_at(scheme.bits)
        factor, damp = _inverse_factor(hessian[order][:, order], alive[order], asked)
        if factor is None:
            return self._rounded(weight, scheme, note=f"rounded to nearest: not positive definite at damping {damp:g}")
        if self.options.asymmetric:
            weight = self._corrected(weight, stats.cross, factor, order)
        grid = rqat.grid_of(scheme)
        if grid.uniform:
            damping = damp * float(hessian.diagonal()[alive].mean())
            codes, scale, zero = self._loop(weight, factor, order, scheme, hessian, damping)
        else:
            codes, scale, zero = gptq_on(grid, weight, factor, order, _importance(factor, order), static=self._static)
        note = "" if damp == asked else f"damping raised from {asked:g} to {damp:g}"
        return grid.layer(codes, scale, zero, note)

    def quantize_block(
        self, block: rqat.Block, stats: Mapping[str, rqat.LinearStats]
    ) -> dict[str, rqat.QuantizedWeight]:
        """Layers with one input and one scheme are stacked: rows do not depend on each other, so this is the same."""
        result: dict[str, rqat.QuantizedWeight] = {}
        for shared in block.inputs:
            for scheme in dict.fromkeys(block.schemes[name] for name in shared.names):
                names = [name for name in shared.names if block.schemes[name] == scheme]
                result |= self._stacked(block, names, stats[names[0]], scheme)
        return result

    def _stacked(
        self, block: rqat.Block, names: Sequence[str], stats: rqat.LinearStats, scheme: rqat.Scheme
    ) -> dict[str, rqat.QuantizedWeight]:
        weights = [block.linear(name).weight.detach() for name in names]
        rows = [weight.shape[0] for weight in weights]
        try:  # the float32 copies are nobody's but the solver's: of an embedding each takes half a gigabyte and more
            whole = self.quantize_linear(torch.cat([weight.float() for weight in weights]), stats, scheme)
        except rqat.NumericsError as error:
            full = ", ".join(map(block.full_name, names))
            raise rqat.NumericsError(f"{full}: {error.message}", hint=error.hint) from error
        parts = {part: tensor.split(rows) for part, tensor in whole.state().items()}
        return {
            name: rqat.QuantizedWeight.from_state(
                {part: own[index].clone() for part, own in parts.items()}, scheme, whole.note
            )
            for index, name in enumerate(names)
        }

    def _order(self, diagonal: Tensor, scheme: rqat.Scheme) -> Tensor:
        """Columns in the order in which they are rounded, by the Hessian's diagonal `(I,)`."""
        if self.options.act_order == "groups":
            grouped = diagonal.view(scheme.groups(len(diagonal)), -1)
            inside = torch.argsort(grouped, dim=1, descending=True, stable=True)
            inside += grouped.shape[1] * torch.arange(len(grouped), device=diagonal.device)[:, None]
            return inside[torch.argsort(grouped.sum(1), descending=True, stable=True)].flatten()
        if self.options.act_order:
            return torch.argsort(diagonal, descending=True, stable=True)
        return torch.arange(len(diagonal), device=diagonal.device)

    def _corrected(self, weight: Tensor, cross: Tensor | None, factor: Tensor, order: Tensor) -> Tensor:
        """Weights that make up for what the layers before have done to the input (GPTAQ, arXiv 2504.02692).

        With `D` the difference of original and present input, column `i` lacks `w_i D_i`; the columns that are rounded
        after it make up for that as well as they can: `w + w ((D X^T U^T) * M) U`, with `M` 1 above the diagonal.
        """
        if cross is None:
            raise rqat.PluginError("gptq was called without cross moments.", hint="Collect what its `needs` asks for.")
        ordered = cross.to(weight.device, torch.float32)[order][:, order]
        share = (ordered.T @ factor.T).triu_(1) @ factor
        corrected = torch.empty_like(weight)
        corrected[:, order] = torch.addmm(weight[:, order], weight[:, order], share, alpha=self.options.asymmetric)
        return corrected

    def _loop(
        self, weight: Tensor, factor: Tensor, order: Tensor, scheme: rqat.Scheme, hessian: Tensor, damping: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and zero point in the columns' own order.

        After every run of the loop the scales are refitted to its codes, `refits` times; every row keeps its best.
        """
        groups = scheme.groups(weight.shape[1])
        importance = _importance(factor, order)
        group_of = order // scheme.group_size(weight.shape[1])
        ordered, back = weight[:, order], torch.argsort(order)
        if self._static:
            scale, zero = self._fit(weight, importance, scheme)
        else:
            scale = torch.ones((weight.shape[0], groups), device=weight.device)
            zero = torch.zeros_like(scale)
        by_turn = importance[order]

        def fit(part: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
            return self._fit(part, by_turn[columns], scheme)

        best: tuple[Tensor, Tensor, Tensor] | None = None
        least = torch.full((weight.shape[0],), torch.inf, dtype=torch.float64, device=weight.device)
        refits = self.options.refits_at(scheme.bits)
        for turn in range(max(1, refits)):
            codes, scale, zero = gptq_block(
                ordered,
                factor,
                scale,
                zero,
                scheme.max_code,
                group_of,
                refit=None if self._static or turn else fit,
                columns=self.options.block_columns,
            )
            codes = codes[:, back]
            if not refits:
                return codes, scale, zero
            scale, error = refit_scales(weight, codes, scale, zero, hessian, damping)
            better = (error < least)[:, None]
            least = torch.minimum(error, least)
            if best is None:
                best = codes, scale, zero
            else:
                best = (
                    torch.where(better, codes, best[0]),
                    torch.where(better, scale, best[1]),
                    torch.where(better, zero, best[2]),
                )
        assert best is not None
        return best

    def _fit(self, weight: Tensor, importance: Tensor, scheme: rqat.Scheme) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the whole groups in `weight (O, I)`; `importance (I,)` of a squared error."""
        groups, symmetric = scheme.groups(weight.shape[1]), scheme.symmetric
        clip = self.options.clip_at(scheme.bits)
        if clip == "minmax":
            return fit_minmax(weight, groups, scheme.max_code, symmetric=symmetric)
        search = fit_ends if clip == "ends" else fit_clip
        narrowest = self.options.narrowest_at(scheme.bits)
        return search(weight, groups, scheme.max_code, symmetric=symmetric, importance=importance, narrowest=narrowest)

    @property
    def _static(self) -> bool:
        """Whether every group is fitted before the loop."""
        asked = self.options.static_groups
        return self.options.act_order is True if asked is None else asked

    def _rounded(self, weight: Tensor, scheme: rqat.Scheme, *, note: str) -> rqat.QuantizedWeight:
        """Round to nearest, for a layer whose Hessian is of no use."""
        grid = rqat.grid_of(scheme)
        if not grid.uniform:
            return grid.quantize_layer(weight, *grid.fit_layer(weight), note)
        fit = {"minmax": fit_minmax, "mse": fit_clip, "ends": fit_ends}[self.options.clip_at(scheme.bits)]
        scale, zero = fit(weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric)
        return grid.quantize_layer(weight, scale, zero, note)


def _importance(factor: Tensor, order: Tensor) -> Tensor:
    """What a squared error of each input feature costs, `(I,)`: an error e of column i that nothing behind it can make
    up for costs `(e / U[i, i])**2`.
    """
    importance = torch.empty_like(factor.diagonal())
    importance[order] = factor.diagonal() ** -2
    return importance


def _checked(hessian: Tensor | None, weight: Tensor) -> Tensor:
    """The Hessian `(I, I)` float32, finite."""
    if hessian is None:
        raise rqat.PluginError("gptq was called without a Hessian.", hint="Collect what its `needs` asks for.")
    if not torch.isfinite(hessian).all():
        raise rqat.NumericsError(
            f"the Hessian of a weight of shape {tuple(weight.shape)} is not finite.",
            hint="The model's activations overflow on the calibration data: load it in float32 or bfloat16.",
        )
    return hessian.to(weight.device, torch.float32)


def _inverse_factor(hessian: Tensor, alive: Tensor, damp: float) -> tuple[Tensor | None, float]:
    """`U (I, I)`, upper triangular, with `U^T U` the inverse of the damped Hessian, and the damping that was needed.

    Every try damps the clean diagonal anew; None when the last one failed too. Flipped in both directions the Hessian's
    lower Cholesky factor is an upper one, `H = R R^T`, and `U = R^-1`: one factorization and one triangular inverse.
    """
    diagonal = hessian.diagonal()
    mean = diagonal[alive].mean()
    clean = torch.where(alive, diagonal, mean)  # nothing is coupled to a column that never moved
    flipped = hessian.flip(0, 1)
    for _ in range(DAMPING_RAISES + 1):
        flipped.diagonal().copy_((clean + damp * mean).flip(0))
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not failed:
            factor = _inverse_of_triangle(lower).flip(0, 1)
            if torch.isfinite(factor).all():
                return factor, damp
        last, damp = damp, max(10 * damp, 1e-3)
    return None, last


def _inverse_of_triangle(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix, by halves: a third of the work of solving for the identity."""
    size = len(lower)
    if size <= 256:
        return torch.linalg.solve_triangular(lower, torch.eye(size, device=lower.device), upper=False)
    half = size // 2
    first, last = _inverse_of_triangle(lower[:half, :half]), _inverse_of_triangle(lower[half:, half:])
    inverse = torch.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return inverse
