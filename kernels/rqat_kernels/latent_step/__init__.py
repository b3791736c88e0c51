"""Straight-through gradients of latents, scales and zero points. `reference.py` is the definition."""

from .reference import latent_step

__all__ = ["latent_step"]
