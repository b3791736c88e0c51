"""Texts in users' files, read by every source and task in the same way: UTF-8, packed or not, and JSON that says one
thing.

What would be read as something else than is meant is refused: a pointer that git left in place of the file, an archive
that unpacks without bound, a key of JSON that is written twice, of which readers take the last in silence.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DataError

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS left in place of another."""

GZIP = b"\x1f\x8b"
"""How a gzip file begins, whatever it is called."""

PIECE = 1 << 20

UNPACKED, TIMES = 1 << 28, 200
"""What a `.gz` may hold at least, in bytes, and how many times its own size; texts are packed to a third or a tenth."""


def read_text(path: Path) -> str:
    """A file's text, unpacked if it is named `.gz`, with line feeds alone as ends of lines.

    Raises:
        DataError: it cannot be read, is not UTF-8 (names the line), is a pointer of Git LFS, or unpacks without bound.
    """
    try:
        refuse_pointer(path)
        data = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    except gzip.BadGzipFile as error:
        raise _cut(path, error) from error
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        raise DataError(f"'{path}' cannot be read: {reason}.", hint="Check the path.") from error
    except (EOFError, zlib.error) as error:
        raise _cut(path, error) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        packed = data.startswith(GZIP) and path.suffix != ".gz"
        hint = f"It is packed: name it {path.name}.gz." if packed else "Convert the file to UTF-8."
        raise DataError(f"{path}:{line}: not UTF-8.", hint=hint) from error


def refuse_pointer(path: Path) -> None:
    """Refuses a file that is a pointer of Git LFS.

    Raises:
        DataError: it is one. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise DataError(
                f"'{path}' is a pointer of Git LFS in place of the file.",
                hint=f"Fetch the file itself: git -C {path.parent} lfs pull",
            )


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, or has a key twice in one object.
        RecursionError: it is nested without end.
    """
    return json.loads(text, object_pairs_hook=once)


def refuse_half_pairs(text: str, place: Callable[[], str], of: str = "") -> None:
    """Refuses half of a surrogate pair, which JSON can hold though it is no text.

    Args:
        place: where the text is; begins the sentence.
        of: what it is a character of, such as ` of the field 'prompt'`.

    Raises:
        DataError: there is one.
    """
    if found := re.search("[\ud800-\udfff]", text):
        half = ascii(found[0])[1:-1]
        raise DataError(
            f"{place()}: character {found.start() + 1}{of} is half of a pair ({half}), which is no text.",
            hint="It was cut in the middle or is in another encoding; mend the data.",
        )


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values.

    Raises:
        ValueError: a key comes twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!a:.60} is written twice")
    return found


def _unpacked(path: Path) -> bytes:
    most = max(UNPACKED, TIMES * path.stat().st_size)
    found = bytearray()
    with gzip.open(path) as file:
        while piece := file.read(PIECE):
            found += piece
            if len(found) > most:
                raise DataError(
                    f"'{path}' unpacks to more than {TIMES} times its size, which no text does.",
                    hint="Do not trust it; fetch it from where it was made.",
                )
    return bytes(found)


def _cut(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' is not a whole gzip file: {error}.", hint="Fetch it again.")
