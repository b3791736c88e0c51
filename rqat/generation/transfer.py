"""Numbers on their way between host and device, for which neither waits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def send(values: Any, device: torch.device) -> Tensor:
    """Whole numbers for a device, on their way: nothing waits for them."""
    made = torch.tensor(values, dtype=torch.long)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and len(made) else made.to(device)


class Fetch:
    """Numbers of a device on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._here.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._here = numbers.clone()

    def arrived(self) -> bool:
        """Whether `get` need not wait."""
        return self._event is None or self._event.query()

    def get(self) -> Any:
        """The numbers, as lists."""
        if self._event is not None:
            self._event.synchronize()
        return self._here.tolist()
