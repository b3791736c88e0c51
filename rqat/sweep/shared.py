"""Steps that cells have in common: a finished one is hard-linked from the cell that has it into those that want it.

Nobody writes into the files of a finished step, so a link is as good as a copy and takes no room.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..run_folder import LINKING, MOVING, finished


def pool(folders: Iterable[Path]) -> dict[str, Path]:
    """Every finished step of some run folders, by fingerprint."""
    found: dict[str, Path] = {}
    for folder in folders:
        for fingerprint, path in finished(folder).items():
            found.setdefault(fingerprint, path)
    return found


def bring(folder: Path, prints: Mapping[str, str], there: Mapping[str, Path]) -> list[str]:
    """Links into a run folder what others have of its steps; names of those.

    Args:
        prints: fingerprints of the folder's steps, by name.
        there: see `pool`.
    """
    own = finished(folder)
    brought = []
    for name, fingerprint in prints.items():
        if fingerprint in own or fingerprint not in there:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / f"{LINKING}{name}"
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(there[fingerprint], half, copy_function=_link)
        # The pipeline takes it from here, as it does a step on its way to another number.
        half.replace(folder / f"{MOVING}{name}")
        brought.append(name)
    return brought


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copy2(source, target)
