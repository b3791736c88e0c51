"""Distillation loss straight from hidden states and head weights. `reference.py` is the definition."""

from .reference import Divergence, linear_kl

__all__ = ["Divergence", "linear_kl"]
