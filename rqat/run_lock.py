"""One process at a time in a run folder: a lock on a file that also says whose it is.

The lock (flock) ends with the process, however that ends; what is written in the file may be of one long gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .errors import RunError
from .storage import explained, read_json

LOCK = ".lock"

TRIES = 3
"""How often a lock is asked for that another process has."""

HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
"""What flock answers when another process has the lock."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Creates the folder if need be and holds its lock; a folder that was made for this and stayed empty goes again.

    Raises:
        RunError: another process is at work in it, its file system has no locks, or somebody removed it meanwhile.
    """
    created = not folder.exists()
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("a+", encoding="utf-8")
    with handle:
        _take(handle, folder)
        try:
            yield
        except Exception as error:
            if folder.is_dir():
                raise
            raise RunError(
                f"'{folder}' was removed while this command was at work in it.", hint="The same command starts over."
            ) from error
        finally:
            if created and folder.is_dir() and [entry.name for entry in folder.iterdir()] == [LOCK]:
                shutil.rmtree(folder)


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a folder; not known, and so not said, where there are no locks."""
    path = folder / LOCK
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as handle:
        try:
            # Shared: a network disk gives no other to what was opened for reading.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in HELD
    return False


def _take(handle: TextIO, folder: Path) -> None:
    try:
        _lock(handle)
    except OSError as error:
        if error.errno in HELD:
            raise RunError(
                f"'{folder}' is in use by {_holder(folder)}.", hint="Wait for it to end, or choose another with -o."
            ) from error
        raise RunError(
            f"'{folder}' cannot be locked (flock: {error.strerror}), so two runs could write there at once.",
            hint="Choose a folder on a disk of this machine, or on a network disk that has locks, with -o.",
        ) from error
    with explained(folder):
        since = datetime.now(UTC).isoformat(timespec="seconds")
        told = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since}) + "\n"
        os.ftruncate(handle.fileno(), 0)
        # Not by way of a buffer, which closing the file would try to write again.
        os.write(handle.fileno(), told.encode())


def _lock(handle: TextIO) -> None:
    """Takes the lock; tries again for a moment, since `is_held` has it for as long as it looks."""
    for _ in range(TRIES - 1):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in HELD:
                raise
        time.sleep(0.05)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(folder: Path) -> str:
    """The process that has the lock, as far as it has said so."""
    told = read_json(folder / LOCK)
    if not isinstance(told, dict) or "process" not in told:
        return "another rqat process"
    return f"process {told['process']} on {told.get('host', 'this machine')}, since {told.get('since', 'a moment ago')}"
