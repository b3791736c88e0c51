"""The tensors of all weight files of a Hugging Face folder, read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .config import weight_files
from .tensor_file import Lying, TensorFile
from .tensors import damaged


class StoredTensors:
    """The tensors of a folder's safetensors files, wherever they lie; one is in memory when it is asked for.

    Attributes:
        tensors: all of them by name, in the order of the files.

    Raises:
        ModelError: a file or a tensor is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.tensors: dict[str, Lying] = {}
        for path in weight_files(folder):
            with _readable(path):
                self.tensors |= TensorFile(path).tensors

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        """The tensor called so, on the CPU."""
        if name not in self.tensors:
            raise damaged(self._folder, f"{name} is missing")
        with _readable(self._folder):
            return self.tensors[name].read()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
