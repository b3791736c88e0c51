"""Where a model is, and in which dtype: what is meant where nothing else is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ModelError

HOST_THREADS = 8
"""That the host computes with beside a GPU. What is left to it (packing, reading, hashing) gains little from more, and
threads that wait for each other where other processes have the cores take many times as long (docs/log.md)."""


def default_device() -> str:
    """ "cuda" where there is a CUDA device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_to_work_on() -> str:
    """The default device, for a command whose process is its own: beside a GPU the host takes few threads.

    OMP_NUM_THREADS wins.
    """
    device = default_device()
    if device == "cuda" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), HOST_THREADS))
    return device


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


@contextmanager
def without_values() -> Iterator[None]:
    """Models made meanwhile have parameters on the meta device, for which nothing is drawn, and buffers as ever.

    Buffers are real, since the rotary embedding computes its own.
    """
    import accelerate
    from transformers.initialization import no_init_weights

    with accelerate.init_empty_weights(include_buffers=False), no_init_weights():
        yield
