"""The uniform grid: weights to codes and back. `reference.py` is the definition."""

from .reference import dequantize, fit_clip, fit_minmax, quantize, snap_scale

__all__ = ["dequantize", "fit_clip", "fit_minmax", "quantize", "snap_scale"]
