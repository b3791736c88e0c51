"""The same public function, once with its kernel and once in plain torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

SWITCH = "RQAT_KERNELS"


def plain_torch(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with all kernels of rqat switched off while it runs."""

    def switched(*arguments: Any) -> Any:
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "torch"
        try:
            return call(*arguments)
        finally:
            if before is None:
                del os.environ[SWITCH]
            else:
                os.environ[SWITCH] = before

    return switched
