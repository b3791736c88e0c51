"""The tensors of all weight files of a Hugging Face folder, read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .config import weight_files
from .tensor_file import Lying, TensorFile, same_bytes
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

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Its values in their order, flat and some at a time, to be looked at only: the next ones overwrite them."""
        with _readable(self._folder):
            yield from self.tensors[name].pieces()

    def holds(self, name: str, other: Tensor | Lying) -> bool:
        """Whether the tensor called so has another one's shape, dtype and bytes."""
        if isinstance(other, Tensor):
            return same_bytes(self.read(name), other)
        if name not in self.tensors:
            raise damaged(self._folder, f"{name} is missing")
        with _readable(self._folder):
            return self.tensors[name].same_as(other)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise damaged(path, str(error)) from error
