"""Files that are either whole or not there: atomic writes, hashes, and folders that appear only when finished."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import DiskError, RqatError, RunError

PARTIAL = ".partial"
"""Suffix of a folder that is still being written; its contents may be resumed from, and are never read as a result."""

SCRATCH = ".resume"
"""Folder within a step's own that an interrupted step resumes from; removed once the step is published, no sooner."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""What a full or failing disk is reported with."""

LONE = "backslashreplace"
"""What becomes of half a surrogate pair, which UTF-8 has no bytes for: in JSON, the escape that it is read from."""

AT_ONCE = 4
"""Files that are hashed, or flushed to disk, at once."""

HEAD_BYTES = 1 << 16
"""Of a file that are looked at to tell, without reading all of it, whether it is still the same."""


def is_inside(name: Any) -> bool:
    """Whether a file's name, read from somebody's file, stays in the folder it is looked for in."""
    return isinstance(name, str) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def is_name(name: Any) -> bool:
    """Whether a text can name a folder: letters, digits, '.', '_' and '-', 100 at most."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,99}", name) is not None


def links_out(folder: Path) -> list[Path]:
    """Links in a folder, at any depth, that lead out of it; those that lead nowhere too."""
    inside = folder.resolve()
    if inside.parent.name == "snapshots" and inside.parent.parent.name.startswith("models--"):
        inside = inside.parent.parent  # the hub's cache: its files lie beside its folders
    found = []
    for place, folders, files in os.walk(folder):
        links = (path for path in (Path(place, name) for name in sorted([*folders, *files])) if path.is_symlink())
        found += [path for path in links if not path.exists() or not path.resolve().is_relative_to(inside)]
    return found


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> dict[str, Any]:
    """What tells a file that nobody has touched: its size in bytes, its time in ns, and the sha256 of its head."""
    found = path.stat()
    with path.open("rb") as file:
        head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "head": head}


def fingerprint_of(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, flushes it to disk and renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            with temporary.open("w", encoding="utf-8", errors=LONE) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes a JSON-lines file, a value to a line, atomically."""
    write_text(path, "".join(map(_line, rows)))


def append_json_line(path: Path, row: Any) -> None:
    """Adds a line to a JSON-lines file; a kill may cut it off."""
    with path.open("a", encoding="utf-8", errors=LONE) as file:
        file.write(_line(row))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file, up to the first damaged one; none when there is no such file."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict):
                break
            rows.append(row)
    return rows


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def sync_file(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Ahead:
    """Flushes large files to disk and hashes them as soon as they are written, while other work goes on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[Path, tuple[tuple[int, int, int], Future[str]]] = {}

    def begin(self, path: Path) -> None:
        """Takes over a file that nobody is to change any more."""
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE)
        self._pool.submit(sync_file, path)  # what the disk refuses is told by the flush that everything awaits
        self._begun[path] = _state_of(path), self._pool.submit(sha256_of, path)

    def sha256_of(self, path: Path) -> str:
        """Hex digest of a file's bytes: of one that was taken over and is still the same, known by now or soon."""
        before, digest = self._begun.pop(path, (None, None))
        return digest.result() if digest is not None and before == _state_of(path) else sha256_of(path)


def _state_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def sync_folder(folder: Path, *, deep: bool = True, flushed: bool = False) -> None:
    """Flushes every file of a folder, and the folder itself, to disk; the folder alone unless `deep`.

    Args:
        flushed: its files are on disk already: only the entries of folders are flushed.
    """
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        if not path.is_symlink() and (path.is_dir() or not flushed):
            sync_file(path)


def sweep(folder: Path) -> None:
    """Removes temporary files that an ended process has left in a folder: ours and those of safetensors."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".tmp*")]:
        if path.is_file():
            path.unlink(missing_ok=True)


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it went away meanwhile
            found += path.lstat().st_size if path.is_file() else 0
    return found


def publish(partial: Path, final: Path, *, flushed: bool = False) -> None:
    """Gives a finished folder its name: flush, then rename; an older folder of that name is removed.

    Its files become as readable as the folder is: safetensors makes files that only their owner can read.

    Args:
        flushed: see `sync_folder`.
    """
    with explained(final):
        for path in partial.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode | (partial.stat().st_mode & 0o666))
        sync_folder(partial, flushed=flushed)
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
        sync_file(final.parent)


def writable_folder(folder: Path, overwrite: bool) -> Path:
    """The folder, if something may be written there: it is new, or empty, or may be overwritten.

    Raises:
        RunError: it holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise RunError(f"'{folder}' {what}.", hint="Choose another folder, or pass overwrite=True.")
    return folder


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns refusals of the operating system while writing under `path` into errors that say what to do."""
    try:
        yield
    except RqatError:
        raise
    except Exception as error:
        found = next(filter(None, (_explanation(path, code) for code in _codes(error))), None)
        if found is None and _is_full(path):  # whatever a library makes of that
            found = _explanation(path, errno.ENOSPC)
        if found is None:
            raise
        raise found from error


def _codes(error: BaseException) -> Iterator[int]:
    """What the operating system has refused with, in an error and in those that led to it.

    safetensors, torch and others report it with exceptions of their own, which have it as text only.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in seen:
            continue
        seen.append(one)
        if isinstance(one, OSError) and one.errno is not None:
            yield one.errno
        yield from (int(code) for code in re.findall(r"(?:os error|Errno) (\d+)", str(one)))
        yield from (code for code in DISK if os.strerror(code) in str(one))
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def _explanation(path: Path, code: int | None) -> RunError | None:
    if code in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"'{path}' cannot be written: the disk is full.",
            hint="Free some space or choose another folder with -o; the same command then resumes.",
        )
    if code == errno.EIO:
        return DiskError(
            f"'{path}' cannot be read or written: the disk fails ({os.strerror(code)}).",
            hint="Mend it, or move the folder to another disk; the same command then resumes.",
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "the file system is read-only" if code == errno.EROFS else "permission denied"
        return RunError(f"'{path}' cannot be written: {why}.", hint="Choose another folder with -o.")
    if code in (errno.ENOTDIR, errno.EEXIST):
        return RunError(f"'{path}' cannot be written: a file stands in its way.", hint="Choose another folder with -o.")
    return None


def unusable(error: Exception) -> RunError | None:
    """What is to be said of a path that no file can have: its name is too long, or its links lead in a circle."""
    code, named = getattr(error, "errno", None), getattr(error, "filename", None)
    # What Path.resolve says of links until Python 3.12.
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):
        code, named = errno.ELOOP, str(error).partition("from ")[2].strip("'\"")
    if code not in (errno.ELOOP, errno.ENAMETOOLONG):
        return None
    why = "its links lead in a circle" if code == errno.ELOOP else "the name is too long"
    return RunError(f"'{named}' is no usable path: {why}.", hint="Choose another.")


def _is_full(path: Path) -> bool:
    """Whether less than one page is left on the file system `path` is, or would be, on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free < 4096
