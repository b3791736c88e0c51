"""AWQ over a block: search a scale per input feature, fold it into the module before, then round with a clip search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import torch
from torch import Tensor, positive

import rqat
from rqat_kernels.grid import dequantize, fit_clip, fit_ends, fit_minmax, quantize

from . import Clip, Options
from .folding import Fold
from .judge import Judge

SMALLEST_MAGNITUDE = 1e-4
"""Inputs smaller than this share of the mean are scaled as if they had it."""

Share = Callable[[Tensor], Tensor]

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

    @torch.no_grad()
    def quantize_block(
        self, block: rqat.Block, stats: Mapping[str, rqat.LinearStats]
    ) -> dict[str, rqat.QuantizedWeight]:
        """Folds scales everywhere first: folding into a linear layer changes rows that are then rounded themselves."""
        inputs = []
        for shared in block.inputs:
            first = shared.names[0]
            found = _checked(stats[first], block.linear(first).weight.device, f"{block.name}.{first}: ")
            inputs.append(_Input(shared.names, Fold.find(block, shared), *found))
        judge = None
        if self.options.judge == "block" and block.streams is not None and block.inputs:
            judge = Judge(block, self.options.sequences)
        scales = self._scales(block, inputs) if judge is None else self._judged(block, inputs, judge)
        for each, scale in zip(inputs, scales, strict=True):
            if each.fold is not None and scale is not None:
                each.fold.apply(scale)
                each.hessian = each.hessian / scale / scale[:, None]  # of x / s, which the layers see now
        if self._rounding:
            now = {name: replace(stats[name], hessian=each.hessian) for each in inputs for name in each.names}
            return self._rounding.quantize_block(block, now)
        if judge is not None:
            return self._clipped(block, inputs, judge)
        return {
            name: self._round(block.linear(name).weight.detach().float(), each.hessian, block.schemes[name])
            for each in inputs
            for name in each.names
        }

    def _scales(self, block: rqat.Block, inputs: Sequence[_Input]) -> list[Tensor | None]:
        """The scale of every input, by the error of its layers; None where nothing can be folded."""
        return [next(iter(self._ranked(block, each)), None) for each in inputs]

    def _ranked(self, block: rqat.Block, each: _Input) -> list[Tensor]:
        """Scales of an input by the error of its layers, the least first; none where nothing can be folded."""
        if each.fold is None:
            return []
        weights = [reader.weight.detach().float() for reader in each.fold.readers]
        stacked = _stacked(weights, [block.schemes[name] for name in each.names])
        return self._search(stacked, each.hessian, each.absmean, each.fold.share)

    def _judged(self, block: rqat.Block, inputs: Sequence[_Input], judge: Judge) -> list[Tensor | None]:
        """The scale of every input, by what the block puts out with the layers before it quantized as well.

        Nothing is folded yet: layers get what their rounded, scaled weights stand for, divided by the scale.
        """
        ranked = [self._ranked(block, each) for each in inputs]  # before the block changes
        found: list[Tensor | None] = []
        with judge.trying():
            for each, scales in zip(inputs, ranked, strict=True):
                before = {name: block.linear(name).weight.to(torch.float32, copy=True) for name in each.names}
                none = torch.ones_like(each.absmean)
                best, least = (none, before), float("inf")
                for scale in [*scales[: self.options.finalists], none]:
                    hessian = each.hessian / scale / scale[:, None]
                    tried = {
                        name: self._values(weight * scale, hessian, block.schemes[name]) / scale
                        for name, weight in before.items()
                    }
                    judge.put(tried)
                    error = judge.error()
                    if error < least:
                        best, least = (scale, tried), error
                judge.put(best[1])
                found.append(best[0] if each.fold is not None else None)
        return found

    def _values(self, weight: Tensor, hessian: Tensor, scheme: rqat.Scheme) -> Tensor:
        """What a rounded weight stands for, float32 `(O, I)`."""
        if self._rounding:
            return _decoded(self._rounding.quantize_linear(weight, rqat.LinearStats(hessian=hessian), scheme))
        return _decoded(self._round(weight, hessian, scheme))

    def _clipped(self, block: rqat.Block, inputs: Sequence[_Input], judge: Judge) -> dict[str, rqat.QuantizedWeight]:
        """Every layer with the clip that the block's output says, those before it quantized."""
        made = {}
        with judge.trying():
            for each in inputs:
                for name in each.names:
                    weight, least = block.linear(name).weight.to(torch.float32, copy=True), float("inf")
                    for clip in get_args(Clip):
                        layer = self._round(weight, each.hessian, block.schemes[name], clip)
                        judge.put({name: _decoded(layer)})
                        error = judge.error()
                        if error < least:
                            made[name], least = layer, error
                    judge.put({name: _decoded(made[name])})
        return made

    def _search(
        self, weights: Mapping[rqat.Scheme, Tensor], hessian: Tensor, absmean: Tensor, share: Share = positive
    ) -> list[Tensor]:
        """Scales `s (I,)` of the form `absmean**alpha`, by `tr(D H D^T)`, `D = w_hat(w s) / s - w`, the least first.

        Args:
            weights: of all layers that read the input, `(O, I)`, those of one scheme stacked.
            share: gives features that have one scale one magnitude, see `Fold.share`.
        """
        if not absmean.any():
            return [torch.ones_like(absmean)]
        scales = list(self._tried(weights, share(absmean), share))
        costs = [sum(self._cost(weight, scale, hessian, own) for own, weight in weights.items()) for scale in scales]
        return [scales[index] for index in sorted(range(len(scales)), key=costs.__getitem__)]

    def _tried(
        self, weights: Mapping[rqat.Scheme, Tensor], absmean: Tensor, share: Share = positive
    ) -> Iterator[Tensor]:
        """Scales `(I,)`, from none to the input's magnitude, the middle of their range at 1."""
        inputs = (absmean / absmean.mean()).clamp(min=SMALLEST_MAGNITUDE).log()
        ways = [torch.zeros_like(inputs)]
        if self.options.duo:
            mean = share(torch.cat([weight.abs() for weight in weights.values()]).mean(0))
            ways.append((mean / mean.mean()).clamp(min=SMALLEST_MAGNITUDE).log())
        for divided in ways:
            for step in range(self.options.grid):
                exponent = step / (self.options.grid - 1)
                power = exponent * inputs - (1 - exponent) * divided
                yield (power - (power.amax() + power.amin()) / 2).exp()

    def _cost(self, weight: Tensor, scale: Tensor, hessian: Tensor, scheme: rqat.Scheme) -> float:
        scaled = weight * scale
        # With the clip search inside: the best scale for whole spans is a poor one for narrowed spans.
        fitted = self._fit(scaled, hessian.diagonal() / scale.square(), scheme, shrinks=SEARCH_SHRINKS)
        error = dequantize(quantize(scaled, *fitted, scheme.max_code), *fitted).sub_(scaled).div_(scale)
        return float(((error @ hessian) * error).sum(dtype=torch.float64))

    def _round(
        self, weight: Tensor, hessian: Tensor, scheme: rqat.Scheme, clip: Clip | None = None
    ) -> rqat.QuantizedWeight:
        """Rounds to nearest; the clip search counts the exact error of each group's part of the output."""
        groups = scheme.groups(weight.shape[1])
        size = weight.shape[1] // groups
        blocks = hessian.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        scale, zero = self._fit(weight, blocks, scheme, clip=clip)
        codes = quantize(weight, scale, zero, scheme.max_code)
        return rqat.QuantizedWeight(codes, scale, zero.to(torch.uint8))

    def _fit(
        self, weight: Tensor, importance: Tensor, scheme: rqat.Scheme, shrinks: int = 20, clip: Clip | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point `(O, G)`."""
        groups, symmetric, clip = scheme.groups(weight.shape[1]), scheme.symmetric, clip or self.options.clip
        if clip == "minmax":
            return fit_minmax(weight, groups, scheme.max_code, symmetric=symmetric)
        if clip == "ends":
            few = max(2, shrinks * 2 // 5)  # of each of three searches, for about as much time
            return fit_ends(weight, groups, scheme.max_code, symmetric=symmetric, importance=importance, shrinks=few)
        return fit_clip(weight, groups, scheme.max_code, symmetric=symmetric, importance=importance, shrinks=shrinks)


@dataclass
class _Input:
    """An input of the block, before a scale is chosen for it.

    Attributes:
        names: the layers that read it.
        fold: where a scale goes; None where there is none.
        hessian, absmean: its statistics, `(I, I)` and `(I,)`.
    """

    names: Sequence[str]
    fold: Fold | None
    hessian: Tensor
    absmean: Tensor


def _decoded(layer: rqat.QuantizedWeight) -> Tensor:
    return dequantize(layer.codes, layer.scale, layer.zero)


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
