"""Latent weights survive the way from one train step to the next, up to float16 within their cells."""

from __future__ import annotations

from pathlib import Path

import torch

from rqat.scheme import Scheme
from rqat.train.latents import load_latents, save_latents
from rqat.train.optimizer import QuantizedOptimizer
from tests.toys import backward, built


def test_come_back_within_their_cells(tmp_path: Path) -> None:
    scheme = Scheme.parse("w2g16")
    model, optimizer = built(scheme)
    for step in range(5):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    layers = optimizer.quantized_layers()
    save_latents(tmp_path, optimizer.latents(), layers)
    loaded = load_latents(tmp_path, layers)
    second = QuantizedOptimizer(model, layers, scheme, lr=1e-3, latents=loaded)
    for name, latent in optimizer.latents().items():
        assert torch.equal(second.quantized_layers()[name].codes, layers[name].codes)
        out, groups = layers[name].scale.shape
        scale = layers[name].scale[..., None].expand(out, groups, latent.numel() // out // groups).reshape(latent.shape)
        inside = ((latent - model.get_submodule(name).weight) / scale).abs() < 0.49
        assert inside.float().mean() > 0.9
        error = ((second.latents()[name] - latent) / scale).abs()
        assert error[inside].max() < 2**-11


def test_a_folder_without_them_gives_none(tmp_path: Path) -> None:
    assert load_latents(tmp_path, {}) == {}
