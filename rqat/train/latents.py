"""Where in their cells the latent weights of a train step start.

A checkpoint between two stages holds codes, scales and zero points only. With every latent weight in the middle of its
cell, an objective with a small learning rate would have to carry it half a cell before the first code changes. So:

- a train step leaves `latents.safetensors`: for each layer the offset `(w - w_hat) / s` in float16, clamped to half a
  scale; the next train step resumes from there;
- the first train step starts from the weights before quantization, clamped to `reach` cells around their codes' values.
  GPTQ moves many weights out of the cell they came from; those would start on its border, and half of them would flip
  back with the first update. Measured on the tiny reasoner (w2g128, GPTQ, 40 steps of kd at lr 5e-4, held-out KL 0.0198
  before): 0.0196 from the middle of the cells, 0.0323 from reach 0.5, 0.0086 from reach 0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..contracts import QuantizedWeight
from ..model.checkpoint import decoded
from .buckets import pieces
from .shards import ALL, Share, local

FILE = "latents.safetensors"

REACH = 0.4
"""Farthest a latent weight starts from its code's value, unless told, in units of the scale; the border is at 0.5."""


def save_latents(folder: Path, latents: Mapping[str, Tensor], layers: Mapping[str, QuantizedWeight]) -> None:
    """Writes the offsets of `latents (O, I)` from the values of their codes."""
    save_offsets(folder, latent_offsets(latents, layers))


def save_offsets(folder: Path, offsets: Mapping[str, Tensor]) -> None:
    """Writes what `latent_offsets` found, of whole layers."""
    save_file(dict(offsets), folder / FILE)


def latent_offsets(latents: Mapping[str, Tensor], layers: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """How far latents `(O, I)` are from the values of their codes, in units of the scale: float16, on the CPU."""
    offsets = {}
    for name, latent in latents.items():
        own = latent.detach()
        found = torch.empty(own.shape, dtype=torch.float16, device=own.device)
        for part in pieces(own):
            centre, scale = _centre(layers[name], part)  # on the latents' device
            grouped = own[part].float().view(centre.shape)
            found[part] = (grouped / scale - centre).clamp_(-0.5, 0.5).view(own[part].shape)
        offsets[name] = found.cpu()
    return offsets


def load_latents(folder: Path, layers: Mapping[str, QuantizedWeight], share: Share = ALL) -> dict[str, Tensor]:
    """Latents `(O, I)` float32 of the layers of a checkpoint; empty when the folder has none.

    Args:
        share: the rows that `layers` have of the checkpoint's.
    """
    if not (folder / FILE).exists():
        return {}
    latents = {}
    for name, of_all in load_file(folder / FILE).items():
        offset = share.of(of_all)
        latents[name] = torch.empty(offset.shape)
        for part in pieces(offset):
            centre, scale = _centre(layers[name], part)
            latents[name][part] = ((centre + offset[part].float().view(centre.shape)) * scale).view(-1, offset.shape[1])
    return latents


class SourceLatents(Mapping[str, Tensor]):
    """Latents from the weights before quantization, by layer, computed when asked for, on the device of `source`.

    Args:
        source: the model before quantization.
        layers: codes, scales and zero points of its quantized form.
        reach: farthest that one starts from its code's value, in units of the scale.
    """

    def __init__(self, source: nn.Module, layers: Mapping[str, QuantizedWeight], *, reach: float = REACH) -> None:
        self.source, self.layers, self.reach = source, layers, reach

    def __getitem__(self, name: str) -> Tensor:
        weight = local(self.source.get_parameter(f"{name}.weight"))
        layer, found = self.layers[name].to(weight.device), torch.empty(weight.shape, device=weight.device)
        for part in pieces(weight):
            centre, scale = _centre(layer, part)
            offset = (weight[part].float().view(centre.shape) / scale - centre).clamp_(-self.reach, self.reach)
            found[part] = ((centre + offset) * scale).view(-1, weight.shape[1])
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.layers  # without computing them

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def is_source_of(source: nn.Module, model: nn.Module, layers: Mapping[str, QuantizedWeight]) -> bool:
    """Whether `model` differs from `source` in its quantized weights only, as far as they are here if they are split.

    AWQ folds scales into norms and into other layers: its weights are no longer comparable with those before. Nor are
    those of a source that keeps its own packed.
    """
    quantized = {f"{name}.weight" for name in layers}
    theirs = dict(source.named_parameters())
    return all(name in theirs for name, _ in model.named_parameters()) and all(
        name in quantized or torch.equal(local(parameter), local(theirs[name]).to(parameter.dtype))
        for name, parameter in model.named_parameters()
    )


def first_latents(
    source: nn.Module,
    model: nn.Module,
    layers: Mapping[str, QuantizedWeight],
    *,
    reach: float = REACH,
    agreed: Callable[[bool], bool] = bool,
) -> tuple[Mapping[str, Tensor], str]:
    """Where the latent weights of a model start that has not been trained yet, and what that is called.

    Args:
        source: the model before quantization.
        reach: see `SourceLatents`; 0 starts all of them in the middle of their cells.
        agreed: of processes that have parts of both, whether all say yes.
    """
    if reach and agreed(is_source_of(source, model, layers)):
        return SourceLatents(source, layers, reach=reach), "the weights before quantization"
    return {}, "the middle of their cells"


def _centre(layer: QuantizedWeight, part: slice) -> tuple[Tensor, Tensor]:
    """Of some rows: the codes' values in units of the scale `(O, G, g)`, and the scale `(O, G, 1)`.

    On the uniform grid the former are exactly `q - z`: its product with a scale is exact, and so is the way back.
    """
    layer = replace(layer, codes=layer.codes[part], scale=layer.scale[part], zero=layer.zero[part])
    scale = layer.scale[..., None].float()
    return decoded(layer, torch.float32).view(*layer.scale.shape, -1) / scale, scale
