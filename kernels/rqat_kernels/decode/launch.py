"""Where a kernel of a decoding step is launched: on the device of its tensors, or nowhere under the interpreter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's CUDA device the current one; does nothing for a tensor on the CPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
