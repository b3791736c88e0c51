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

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        with self.path.open("rb", buffering=0) as file:
            if _outline(file) != self.outline:
                raise SafetensorError(f"{self.path} was written again after its header had been read")
            yield file

    def _read(self, file: FileIO, skipped: int) -> Tensor:
        """The tensor's bytes behind some that are skipped."""
        found = torch.empty(self.nbytes - skipped, dtype=torch.uint8)
        left = found.numpy().data
        file.seek(self.start + skipped)
        while len(left):
            count = file.readinto(left)
            if not count:
                raise SafetensorError(f"it ends {len(left)} bytes early")
            left = left[count:]
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
