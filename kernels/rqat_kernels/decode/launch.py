"""How a kernel of a decoding step is launched: on the device of its tensors, and while the kernel before it still ends.

The second is programmatic dependent launch (Hopper): a kernel is set up early, waits for the one before where it needs
its results, and lets the next one start at once. Every kernel here waits before it writes anything, or reads anything
but weights of the model and, in attention, what all layers of a step share. So a step may be any sequence of them and
of others, as long as that is written two kernels before at the latest.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's CUDA device the current one; does nothing for a tensor on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def early(device: torch.device) -> bool:
    """Whether kernels on a device may start before the one before has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(device: torch.device) -> dict[str, Any]:
    """Options of a launch that say so."""
    return {"launch_pdl": True} if early(device) else {}
