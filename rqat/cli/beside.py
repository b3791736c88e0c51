"""A hidden folder beside OUT, in which a command works until what it makes is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import RqatError


@contextmanager
def work_beside(out: Path, *, worth_keeping: str) -> Iterator[Path]:
    """The folder, from which the same command resumes when it was interrupted; removed at the end.

    Args:
        worth_keeping: pattern of files of which one has to be there for another attempt to have anything to start from,
            after an error that the user can put right.
    """
    work = out.absolute().with_name(f".{out.name}.rqat")
    made = [parent for parent in work.parents if not parent.exists()]
    try:
        yield work
    except RqatError:
        if not any(work.glob(worth_keeping)):
            shutil.rmtree(work, ignore_errors=True)
            for parent in made:
                with suppress(OSError):  # it is not empty, or was never made
                    parent.rmdir()
        raise
    shutil.rmtree(work, ignore_errors=True)
