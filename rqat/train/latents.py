"""Latent weights on their way from one training step to the next.

A checkpoint between two stages holds codes, scales and zero points only. Where inside its cell a latent weight stood
would be lost, and an objective with a small learning rate would have to carry every weight half a cell before the first
code changes. So a train step also leaves `latents.safetensors`: for each layer the offset `w / s - (q - z)` in float16,
clamped to the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..contracts import QuantizedWeight

FILE = "latents.safetensors"


def save_latents(folder: Path, latents: Mapping[str, Tensor], layers: Mapping[str, QuantizedWeight]) -> None:
    """Writes the offsets of `latents (O, I)` from the values of their codes."""
    offsets = {}
    for name, latent in latents.items():
        codes, scale, zero = _grouped(layers[name])
        grouped = latent.detach().cpu().float().view(codes.shape)
        offset = (grouped / scale - (codes - zero)).clamp_(-0.5, 0.5)
        offsets[name] = offset.to(torch.float16).view(latent.shape).contiguous()
    save_file(offsets, folder / FILE)


def load_latents(folder: Path, layers: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """Latents `(O, I)` float32 of the layers of a checkpoint; empty when the folder has none."""
    if not (folder / FILE).exists():
        return {}
    latents = {}
    for name, offset in load_file(folder / FILE).items():
        codes, scale, zero = _grouped(layers[name])
        latents[name] = ((codes - zero + offset.float().view(codes.shape)) * scale).view(offset.shape)
    return latents


def _grouped(layer: QuantizedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `(O, G, g)`, scale and zero point `(O, G, 1)` in float32."""
    out, groups = layer.scale.shape
    return layer.codes.view(out, groups, -1).float(), layer.scale[..., None].float(), layer.zero[..., None].float()
