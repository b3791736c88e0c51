"""The tensors of all weight files of a Hugging Face folder, read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import weight_files
from .tensors import damaged


class StoredTensors:
    """The tensors of a folder's safetensors files, wherever they lie; one is in memory when it is asked for.

    Attributes:
        names: of all of them, in the order of the files.

    Raises:
        ModelError: a file or a tensor is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: dict[str, Any] = {}
        for path in weight_files(folder):
            with _readable(path):
                file = safe_open(path, framework="pt")
                self._file |= dict.fromkeys(file.keys(), file)

    @property
    def names(self) -> list[str]:
        return list(self._file)

    def read(self, name: str) -> Tensor:
        """The tensor called so, on the CPU."""
        if name not in self._file:
            raise damaged(self._folder, f"{name} is missing")
        with _readable(self._folder):
            tensor: Tensor = self._file[name].get_tensor(name)
            return tensor


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
