"""AWQ over a block: search a scale per input feature, fold it into the module before, then round with a clip search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

import rqat
from rqat_kernels.grid import dequantize, fit_clip, fit_ends, fit_minmax, quantize

from . import Options
from .folding import Fold

SMALLEST_MAGNITUDE = 1e-4
"""Inputs smaller than this share of the mean are scaled as if they had it."""

SEARCH_SHRINKS = 5
"""Spans tried per scale; the final clip search tries more."""


class Awq(rqat.Quantizer):
    """Activation-aware scaling (arXiv 2306.00978, section 3.2), judged by the exact output error of the layers.

    A layer by itself has nowhere to fold a scale: `quantize_linear` only searches the clip.
    """

    needs: ClassVar[frozenset[rqat.Statistic]] = frozenset({"hessian", "absmean"})
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._rounding = rqat.quantizer_of(options.rounding) if options.rounding else None
        beyond = self._rounding.needs - {"hessian"} if self._rounding else frozenset()
        if beyond:
            raise rqat.RqatError(
                f"awq.rounding: {options.rounding} needs {', '.join(sorted(beyond))}, which awq does not scale.",
                hint="Name a quantizer that looks at the Hessian at most: gptq, rtn.",
            )

    def quantize_linear(self, weight: Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`."""
        if self._rounding:
            return self._rounding.quantize_linear(weight, stats, scheme)
        hessian, _ = _checked(stats, weight.device)
        return self._round(weight.float(), hessian, scheme)

    def quantize_block(
        self, block: rqat.Block, stats: Mapping[str, rqat.LinearStats]
    ) -> dict[str, rqat.QuantizedWeight]:
        """Folds scales everywhere first: folding into a linear layer changes rows that are then rounded themselves."""
        hessians = []
        for shared in block.inputs:
            first = shared.names[0]
            hessian, absmean = _checked(stats[first], block.linear(first).weight.device, f"{block.name}.{first}: ")
            fold = Fold.find(block, shared)
            if fold is not None:
                weights = [reader.weight.detach().float() for reader in fold.readers]
                schemes = [block.schemes[name] for name in shared.names]
                scale = self._search(_stacked(weights, schemes), hessian, fold.share(absmean))
                fold.apply(scale)
                hessian = hessian / scale / scale[:, None]  # of x / s, which the layers see now
            hessians.append(hessian)
        if self._rounding:
            now = {
                name: replace(stats[name], hessian=hessian)
                for shared, hessian in zip(block.inputs, hessians, strict=True)
                for name in shared.names
            }
            return self._rounding.quantize_block(block, now)
        return {
            name: self._round(block.linear(name).weight.detach().float(), hessian, block.schemes[name])
            for shared, hessian in zip(block.inputs, hessians, strict=True)
            for name in shared.names
        }

    def _search(self, weights: Mapping[rqat.Scheme, Tensor], hessian: Tensor, absmean: Tensor) -> Tensor:
        """Scale `s (I,)` of the form `absmean**alpha` with the least `tr(D H D^T)`, `D = w_hat(w s) / s - w`.

        Args:
            weights: of all layers that read the input, `(O, I)`, those of one scheme stacked.
        """
        best, least = torch.ones_like(absmean), float("inf")
        if not absmean.any():
            return best
        for scale in self._tried(weights, absmean):
            cost = sum(self._cost(weight, scale, hessian, scheme) for scheme, weight in weights.items())
            if cost < least:
                best, least = scale, cost
        return best

    def _tried(self, weights: Mapping[rqat.Scheme, Tensor], absmean: Tensor) -> Iterator[Tensor]:
        """Scales `(I,)`, from none to the input's magnitude, the middle of their range at 1."""
        inputs = (absmean / absmean.mean()).clamp(min=SMALLEST_MAGNITUDE).log()
        ways = [torch.zeros_like(inputs)]
        if self.options.duo:
            mean = torch.cat([weight.abs() for weight in weights.values()]).mean(0)
            ways.append((mean / mean.mean()).clamp(min=SMALLEST_MAGNITUDE).log())
        for divided in ways:
            for step in range(self.options.grid):
                share = step / (self.options.grid - 1)
                power = share * inputs - (1 - share) * divided
                yield (power - (power.amax() + power.amin()) / 2).exp()

    def _cost(self, weight: Tensor, scale: Tensor, hessian: Tensor, scheme: rqat.Scheme) -> float:
        scaled = weight * scale
        # With the clip search inside: the best scale for whole spans is a poor one for narrowed spans.
        fitted = self._fit(scaled, hessian.diagonal() / scale.square(), scheme, shrinks=SEARCH_SHRINKS)
        error = dequantize(quantize(scaled, *fitted, scheme.max_code), *fitted).sub_(scaled).div_(scale)
        return float(((error @ hessian) * error).sum(dtype=torch.float64))

    def _round(self, weight: Tensor, hessian: Tensor, scheme: rqat.Scheme) -> rqat.QuantizedWeight:
        """Rounds to nearest; the clip search counts the exact error of each group's part of the output."""
        groups = scheme.groups(weight.shape[1])
        size = weight.shape[1] // groups
        blocks = hessian.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        scale, zero = self._fit(weight, blocks, scheme)
        codes = quantize(weight, scale, zero, scheme.max_code)
        return rqat.QuantizedWeight(codes, scale, zero.to(torch.uint8))

    def _fit(self, weight: Tensor, importance: Tensor, scheme: rqat.Scheme, shrinks: int = 20) -> tuple[Tensor, Tensor]:
        """Scale and zero point `(O, G)`."""
        groups, symmetric = scheme.groups(weight.shape[1]), scheme.symmetric
        if self.options.clip == "minmax":
            return fit_minmax(weight, groups, scheme.max_code, symmetric=symmetric)
        if self.options.clip == "ends":
            few = max(2, shrinks * 2 // 5)  # of each of three searches, for about as much time
            return fit_ends(weight, groups, scheme.max_code, symmetric=symmetric, importance=importance, shrinks=few)
        return fit_clip(weight, groups, scheme.max_code, symmetric=symmetric, importance=importance, shrinks=shrinks)


def _stacked(weights: Sequence[Tensor], schemes: Sequence[rqat.Scheme]) -> dict[rqat.Scheme, Tensor]:
    """Weights of one scheme as one."""
    return {
        each: torch.cat([weight for weight, own in zip(weights, schemes, strict=True) if own == each])
        for each in dict.fromkeys(schemes)
    }


def _checked(stats: rqat.LinearStats, device: torch.device, place: str = "") -> tuple[Tensor, Tensor]:
    """Hessian `(I, I)` and mean magnitude `(I,)`, float32 on `device`, finite."""
    if stats.hessian is None or stats.absmean is None:
        raise rqat.PluginError(f"{place}awq was called without statistics.", hint="Collect what its `needs` asks for.")
    if not (torch.isfinite(stats.hessian).all() and torch.isfinite(stats.absmean).all()):
        raise rqat.NumericsError(
            f"{place}the statistics of its input are not finite.",
            hint="The model's activations overflow on the calibration data: load it in float32 or bfloat16.",
        )
    return stats.hessian.to(device, torch.float32), stats.absmean.to(device, torch.float32)
