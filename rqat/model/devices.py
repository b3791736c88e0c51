"""Where a model is, and in which dtype: what is meant where nothing else is said."""

from __future__ import annotations

import torch

from ..errors import ModelError


def default_device() -> str:
    """ "cuda" where there is a CUDA device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_called(name: str | None) -> torch.device:
    """The device called so, or the best there is.

    Raises:
        ModelError: there is none.
    """
    if name is None:
        return torch.device(default_device())
    try:
        device = torch.device(name)
        there = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    except RuntimeError:
        there = False
    if not there:
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ModelError(f"There is no device '{name}' here.", hint=f"Known: {', '.join(known)}.")
    return device


def default_dtype(device: str, name: str = "auto") -> torch.dtype:
    """The dtype of a model in memory: what `name` says; `auto` is float32 on the CPU and bfloat16 on CUDA."""
    if name == "auto":
        name = "bfloat16" if device.startswith("cuda") else "float32"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
