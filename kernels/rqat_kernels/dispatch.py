"""Which implementation of an operation runs: Triton on CUDA, plain torch elsewhere; thresholds from a measured table.

Every operation asks `use_triton` about the tensors it was given. Where several kernels could do the work, the limits
between them stand in `measured/<gpu>.json`, written by `python kernels/bench/run.py` on that GPU; a GPU without a table
of its own gets the one of a GPU of its compute capability, or `measured/default.json`.

RQAT_KERNELS=torch switches all kernels off, for a comparison or to rule them out as the cause of an error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

SWITCH = "RQAT_KERNELS"

OLDEST = (8, 0)
"""Compute capability from which the kernels are compiled and checked: Ampere, for bfloat16 matrix instructions."""

ALIKE = {(9, 0): "h100-80gb-hbm3"}
"""By compute capability: whose table a GPU without its own gets. An H200 is an H100 with faster memory."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Around work on the CPU that goes piece by piece, without a product of matrices: torch uses no second thread.

    Its threads wait for each other at the end of every operation, which here takes some ten microseconds. They gain
    little, and where another process has one of the cores, the waiting takes five times as long as the work.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported; CPU builds of torch come without it."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run on the CPU, by Triton's interpreter (`TRITON_INTERPRET=1`, for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(*tensors: Tensor) -> bool:
    """Whether the Triton kernel of an operation takes these tensors: all on a CUDA device that it supports."""
    if os.environ.get(SWITCH) == "torch" or interpreted() or not has_triton():
        return False
    return all(tensor.is_cuda for tensor in tensors) and torch.cuda.get_device_capability(tensors[0].device) >= OLDEST


def plain_call(tensor: Tensor) -> bool:
    """Whether an operation may call its reference without a detour through torch's dispatcher: eagerly on the CPU."""
    return tensor.is_cpu and not torch.compiler.is_compiling()


def gpu_slug(name: str) -> str:
    """The name of a GPU as a file name: 'NVIDIA H100 80GB HBM3' is 'h100-80gb-hbm3'."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")


@cache
def _table(*names: str) -> dict[str, Any]:
    """The first table that there is."""
    folder = files(__package__) / "measured"
    for name in (*names, "default"):
        file = folder / f"{name}.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return {}


def measured(operation: str, device: torch.device) -> dict[str, Any]:
    """What was measured for an operation on the GPU of `device`, on one alike, or by default; {} when nothing was."""
    if device.type != "cuda":
        return _table().get(operation, {})
    alike = ALIKE.get(torch.cuda.get_device_capability(device), "default")
    return _table(gpu_slug(torch.cuda.get_device_name(device)), alike).get(operation, {})
