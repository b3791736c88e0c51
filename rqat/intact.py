"""Whether the files of a finished step are still what was written: at a glance, or byte for byte.

manifest.json of a step has under `files` the sha256 of every file, and under `stamps` its size, its time and the sha256
of its first bytes. A start looks at the stamps only, which reads next to nothing of gigabytes; a step that reads the
files, and `rqat runs verify`, compare the whole hashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import RunError
from .storage import (
    AT_ONCE,
    HEAD_BYTES,
    SCRATCH,
    Ahead,
    is_inside,
    read_json,
    sha256_of,
    stamp_of,
    sync_file,
    write_json,
)

MANIFEST = "manifest.json"

KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("step", "stage", "variant", "fingerprint"), (str,)),
    **dict.fromkeys(("facts", "results", "files"), (dict,)),
    "seconds": (int, float),
}
"""What a step's manifest has, and of what kind."""

OPTIONAL: dict[str, tuple[type, ...]] = {"stamps": (dict,), "versions": (dict,), "told": (list,)}
"""What manifests of earlier versions may lack."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the finished step in `folder`; None where there is none, or it is not one that rqat wrote."""
    found = read_json(folder / MANIFEST)
    return found if is_manifest(found) else None


def is_manifest(found: Any) -> bool:
    """Whether this is what a manifest holds, as far as it is read."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kinds) for key, kinds in KINDS.items()):
        return False
    if not all(isinstance(found[key], kinds) for key, kinds in OPTIONAL.items() if key in found):
        return False
    return all(isinstance(stamp, dict) for stamp in found.get("stamps", {}).values())


def sealed(folder: Path, *, without: Collection[str] = (), ahead: Ahead | None = None) -> dict[str, dict[str, Any]]:
    """`files` and `stamps` of a manifest, of all that is in a folder but its scratch.

    All of it is flushed to disk meanwhile, as it has to be before the folder gets its name: the disk works while the
    processor does.

    Args:
        without: names of files, directly in the folder, to leave out of the manifest.
        ahead: knows the hashes of some.
    """
    ahead = ahead or Ahead()
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    inside = {name: path for name, path in paths.items() if Path(name).parts[0] != SCRATCH}
    found = {name: path for name, path in inside.items() if name not in without}
    with ThreadPoolExecutor(AT_ONCE) as disk, ThreadPoolExecutor(AT_ONCE) as pool:
        flushed = disk.map(sync_file, (path for path in inside.values() if not path.is_symlink()))
        digests = list(pool.map(ahead.sha256_of, found.values()))  # a thread reads and hashes about 1.5 GB/s
        deque(flushed, maxlen=0)  # raises what the disk has refused
    return {
        "files": dict(zip(found, digests, strict=True)),
        "stamps": {name: stamp_of(path) for name, path in found.items()},
    }


def damaged(folder: Path, manifest: Any, *, whole: bool) -> list[str]:
    """Files of a finished step that are missing or not what its manifest says; its manifest, where it is none.

    A name that leads out of the folder is never followed. A file of another time is read to its end: it may have been
    copied. Where all have proved the same, the manifest takes their new times, so that this is done once; of a folder
    that cannot be written, each time.

    Args:
        whole: compare every file's whole hash; else only where the stamp does not tell.
    """
    if not is_manifest(manifest):
        return [MANIFEST]
    stamps = manifest.get("stamps", {})
    wrong, touched = [], dict[str, Any]()
    for name, digest in manifest["files"].items():
        path = folder / name
        if not is_inside(name) or not path.is_file():
            wrong.append(name)
            continue
        stamp, before = stamp_of(path), stamps.get(name)
        small = stamp["bytes"] <= HEAD_BYTES  # its head is all of it
        if stamp == before and (not whole or small):
            continue
        if (before and any(stamp[key] != before.get(key) for key in ("bytes", "head"))) or (
            not (before and small) and sha256_of(path) != digest
        ):
            wrong.append(name)
        elif stamp != before:
            touched[name] = stamp
    if touched and not wrong:
        with suppress(RunError):
            write_json(folder / MANIFEST, {**manifest, "stamps": {**stamps, **touched}})
    return wrong


def verified(folder: Path) -> list[str]:
    """Files of the finished step in `folder` that are not, byte for byte, what was written."""
    return damaged(folder, read_json(folder / MANIFEST), whole=True)
