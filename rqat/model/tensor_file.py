"""Safetensors files, read and written tensor by tensor, so that a file may be larger than the memory.

`safe_open` maps a file; what was read of it then stays resident for as long as any of its tensors is there. Here every
tensor is read into memory of its own. And a file is written from tensors in memory and from such that lie in other
files, one after the other, to the same bytes as `safetensors.torch.save_file` would write them.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""By their names in a file. The order is that of the library, which writes the tensors of the last ones first."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}

COPIED = 1 << 16
"""Bytes from which on the system is asked to copy a tensor from file to file."""

NO_COPY = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
"""What it answers where it does not copy between two files, of two kinds of disks for example."""

ALIGNED = 8
"""Bytes that the header is filled up to a multiple of."""

PIECE = 1 << 20
"""Bytes that are looked at together where a tensor is only looked at: they stay in a processor's cache, and the memory
that they are read into is used again, where new pages for a large tensor take five times as long as reading it."""


@dataclass(frozen=True)
class Lying:
    """A tensor in a file, not read yet.

    Attributes:
        path: the file.
        start: of its first byte in there.
        shape, dtype: the tensor's.
        outline: of the file when its header was read, see `_outline`.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    outline: tuple[int, bytes]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            SafetensorError: the file is another one by now. OSError: it cannot be read.
        """
        with self._opened() as file:
            return self._read(file, 0).view(self.dtype).reshape(self.shape)

    def copy_to(self, file: BufferedWriter) -> None:
        """Writes the tensor's bytes at the end of a file.

        The system copies them where it can, in half the time and without memory of this process.

        Raises:
            SafetensorError: see `read`. OSError: it cannot be read, or the other not be written.
        """
        with self._opened() as source:
            done = 0
            if self.nbytes >= COPIED:
                file.flush()
                done = _copied(source.fileno(), file.fileno(), self.start, self.nbytes)
                file.seek(0, os.SEEK_END)
            if done < self.nbytes:
                file.write(self._read(source, done).numpy().data)

    def rows(self, numbers: Tensor) -> Tensor:
        """Some rows of a matrix, in the order of their numbers `(...)`: `(..., width)`.

        Raises:
            SafetensorError, OSError: see `read`.
        """
        wide = self.shape[1] * self.dtype.itemsize
        found = torch.empty((numbers.numel(), wide), dtype=torch.uint8)
        with self._opened() as file:
            for row, number in zip(found, numbers.flatten().tolist(), strict=True):
                file.seek(self.start + number * wide)
                _fill(row, file)
        return found.view(self.dtype).reshape(*numbers.shape, self.shape[1])

    def pieces(self) -> Iterator[Tensor]:
        """The tensor's values in their order, flat and some at a time; the next ones overwrite them.

        Raises:
            SafetensorError, OSError: see `read`.
        """
        place = torch.empty(min(PIECE, self.nbytes), dtype=torch.uint8)
        with self._opened() as file:
            file.seek(self.start)
            for done in range(0, self.nbytes, PIECE):
                some = place[: self.nbytes - done]
                _fill(some, file)
                yield some.view(self.dtype)

    def same_as(self, other: Lying) -> bool:
        """Whether another tensor has this one's shape, dtype and bytes.

        Raises:
            SafetensorError, OSError: see `read`.
        """
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        return all(same_bytes(mine, theirs) for mine, theirs in zip(self.pieces(), other.pieces(), strict=True))

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        with self.path.open("rb", buffering=0) as file:
            if _outline(file) != self.outline:
                raise SafetensorError(f"{self.path} was written again after its header had been read")
            yield file

    def _read(self, file: FileIO, skipped: int) -> Tensor:
        """The tensor's bytes behind some that are skipped."""
        found = torch.empty(self.nbytes - skipped, dtype=torch.uint8)
        file.seek(self.start + skipped)
        _fill(found, file)
        return found


class TensorFile:
    """A safetensors file whose header has been read and found sound.

    Attributes:
        tensors: every tensor by name.
        metadata: the texts beside them.

    Raises:
        SafetensorError: it is damaged, or has tensors of a dtype that torch does not have. OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            outline = _outline(file)
        with safe_open(path, framework="pt") as found:  # which refuses headers that do not fit the file
            self.metadata: dict[str, str] = found.metadata() or {}
            slices = [(name, found.get_slice(name)) for name in found.offset_keys()]
            facts = [(name, tuple(each.get_shape()), str(each.get_dtype())) for name, each in slices]
        unknown = [f"{name} is {dtype}" for name, _, dtype in facts if dtype not in DTYPES]
        if unknown:
            raise SafetensorError(f"{unknown[0]}, which is no dtype of torch")
        start = 8 + int(struct.unpack("<Q", outline[1])[0])
        self.tensors: dict[str, Lying] = {}
        for name, shape, dtype in facts:  # they lie one behind the other, without gaps
            self.tensors[name] = Lying(path, start, shape, DTYPES[dtype], outline)
            start += self.tensors[name].nbytes

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU: see `Lying.read`. KeyError: it is not there."""
        return self.tensors[name].read()


def write_file(path: Path, tensors: Mapping[str, Tensor | Lying], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file under a temporary name, then renames it.

    Args:
        tensors: of those that lie in other files, one is in memory at a time.
        metadata: texts beside them.

    Raises:
        OSError: the disk is full or the folder not writable. SafetensorError: see `Lying.read`.
    """
    order = sorted(tensors, key=lambda name: (-RANKS[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        one = tensors[name]
        start, end = end, end + one.nbytes
        header[name] = {"dtype": NAMES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                one = tensors[name]
                if isinstance(one, Lying):
                    one.copy_to(file)
                else:
                    file.write(_in_a_row(one.detach().cpu()).view(torch.uint8).numpy().data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the CPU have the same shape, dtype and bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    # By numpy, and eight bytes at a time where they can be: torch compares single bytes one by one.
    mine, theirs = (_in_a_row(each).view(torch.uint8).numpy() for each in (one, other))
    whole = len(mine) - len(mine) % 8
    return np.array_equal(mine[:whole].view(np.int64), theirs[:whole].view(np.int64)) and np.array_equal(
        mine[whole:], theirs[whole:]
    )


def _fill(place: Tensor, file: FileIO) -> None:
    """Reads as many bytes from a file as a tensor of bytes holds."""
    left = place.numpy().data
    while len(left):
        count = file.readinto(left)
        if not count:
            raise SafetensorError(f"it ends {len(left)} bytes early")
        left = left[count:]


def _copied(source: int, target: int, start: int, count: int) -> int:
    """How many bytes the system has copied to where `target` stands; 0 where it cannot copy between these files."""
    copy = getattr(os, "copy_file_range", None)
    done = 0
    while copy is not None and done < count:
        try:
            step = copy(source, target, count - done, start + done)
        except OSError as error:
            if error.errno not in NO_COPY:
                raise
            break
        if not step:
            break
        done += step
    return done


def _outline(file: IO[bytes]) -> tuple[int, bytes]:
    """A file's size and the length of its header, from its beginning: where these differ, tensors lie elsewhere.

    No time: network disks tell it late.
    """
    return os.fstat(file.fileno()).st_size, file.read(8)


def _in_a_row(tensor: Tensor) -> Tensor:
    """Its values behind one another; one of a single value may come with a stride that is no tensor's of bytes."""
    flat = tensor.contiguous().reshape(-1)
    return flat if flat.stride(0) == 1 else torch.empty_like(flat, memory_format=torch.contiguous_format).copy_(flat)
