"""Latent weights survive the way from one train step to the next, up to float16 within their cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat.scheme import Scheme
from rqat.train.latents import REACH, SourceLatents, first_latents, is_source_of, load_latents, save_latents
from rqat.train.optimizer import QuantizedOptimizer
from tests.toys import backward, built, quantized, toy


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
    second = QuantizedOptimizer(model, layers, lr=1e-3, latents=loaded)
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


def test_start_from_the_weights_before_quantization_but_off_the_borders() -> None:
    scheme = Scheme.parse("w2g16")
    source, model = toy(), toy()
    layers = quantized(model, scheme)
    with torch.no_grad():
        source[0].weight[0, 0] += 100  # far outside its cell, as GPTQ leaves weights
    latents = SourceLatents(source, layers)
    assert list(latents) == list(layers)
    optimizer = QuantizedOptimizer(model, layers, lr=1e-3, latents=latents)
    for name, layer in optimizer.quantized_layers().items():
        assert torch.equal(layer.codes, layers[name].codes)
        out, groups = layer.scale.shape
        offset = (
            (latents[name] - model.get_submodule(name).weight).view(out, groups, -1) / layer.scale[..., None]
        ).abs()
        assert offset.max() <= REACH + 1e-6
        near = offset < REACH - 1e-3
        there = torch.isclose(latents[name], source.get_submodule(name).weight, rtol=0, atol=1e-6)
        assert there.view_as(near)[near].all()
        assert near.float().mean() > 0.5


@pytest.mark.parametrize("reach", [0.1, 0.25])
def test_the_start_stays_within_the_reach_that_is_asked_for(reach: float) -> None:
    layers = quantized(toy(), Scheme.parse("w2g16"))
    source = toy()
    latents, where = first_latents(source, toy(), layers, reach=reach)
    assert where == "the weights before quantization"
    model = toy()
    assert QuantizedOptimizer(model, layers, lr=1e-3, latents=latents).steps_done == 0
    farthest = 0.0
    for name, layer in layers.items():
        out, groups = layer.scale.shape
        moved = latents[name] - model.get_submodule(name).weight.detach()
        farthest = max(farthest, float((moved.view(out, groups, -1) / layer.scale[..., None]).abs().max()))
    assert farthest == pytest.approx(reach, abs=1e-5)


def test_no_reach_is_the_middle_of_every_cell() -> None:
    latents, where = first_latents(toy(), toy(), quantized(toy(), Scheme.parse("w2g16")), reach=0)
    assert not latents
    assert where == "the middle of their cells"


def test_a_model_with_scales_folded_into_it_has_no_comparable_source() -> None:
    model = toy()
    layers = quantized(model, Scheme.parse("w2g16"))
    assert is_source_of(toy(), model, layers)
    with torch.no_grad():
        model[1].weight[3] *= 1.5
    assert not is_source_of(toy(), model, layers)
