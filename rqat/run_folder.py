"""What a run folder holds already: which finished steps a plan keeps, which it does again, and what it sets aside.

    runs/quickstart/
      01-calibrate/               a finished step: its files and, written last, manifest.json
      04-train-kd.partial/        a step that was interrupted, with the fingerprint it works for in .step.json
      .old/1/04-train-kd/         what belonged to another plan: set aside, never deleted unasked

A finished step is recognized by the fingerprint in its manifest, not by its number or by its place: it is kept wherever
a plan asks for the same, under a new number if need be, and taken back from `.old` when a plan asks for it again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from .contracts import File
from .errors import RunError, UnknownName
from .facts import difference, files_of
from .intact import MANIFEST
from .keys import ModelKeys
from .problems import Place
from .stage import Step, bare_name
from .storage import PARTIAL, links_out, read_json, sweep

SUMMARY = "summary.json"
"""Of a run, written last: without it the run's report is still to be written."""

MARK = ".step.json"
"""In an unfinished folder: the fingerprint of the step that may resume from it."""

OLD = ".old"
MOVING = ".moving-"
"""In front of the name of a step on its way to another number; an interrupted move is taken up again."""

LINKING = ".linking-"
"""In front of the name of a step whose files are being linked; without its manifest's name it is never read."""

State = Literal["kept", "again", "new"]


class Planned(Protocol):
    """What is asked of a plan here; see `rqat.plan.Plan`."""

    @property
    def steps(self) -> tuple[Step, ...]: ...

    def facts(self, step: Step) -> dict[str, Any]: ...

    def fingerprints(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Fate:
    """What becomes of one step of a plan.

    Attributes:
        step: its name.
        fingerprint: of the step.
        state: "kept": what is there is its result; "again": there is a result of it, but of something else;
            "new": there is none.
        reason: why, in a few words; "" where there is nothing to say.
        found: the folder of the result that is kept.
    """

    step: str
    fingerprint: str
    state: State
    reason: str = ""
    found: Path | None = None


def refuse_links(folder: Path) -> None:
    """Refuses a run folder in which a link leads out of it: what is written or removed there would not be the run's.

    Raises:
        RunError: names it.
    """
    for path in links_out(folder):
        raise RunError(
            f"'{path}' is a link to '{os.readlink(path)}', which is not in the run's folder.",
            hint="Put what it leads to in its place, or remove it; the folder of the run may be a link itself.",
        )


def fates(plan: Planned, folder: Path, *, redo: Collection[str] = ()) -> list[Fate]:
    """What becomes of every step of a plan in a run folder; nothing is touched.

    Args:
        redo: names of steps that are done again, with all that depends on them, although their results are there.
    """
    done = finished(folder)
    again = dependents(plan, redo)
    prints = plan.fingerprints()
    wanted = set(prints.values())
    found = []
    for step in plan.steps:
        its = prints[step.name]
        kept = done.get(its)
        if kept is not None and step.name not in again:
            inside = kept.relative_to(folder)
            where = f"taken back from {inside.parent}" if inside.parts[0] == OLD else ""
            moved = "" if where or inside.name.removeprefix(MOVING) == step.name else f"was {inside.name}"
            found.append(Fate(step.name, its, "kept", where or moved, kept))
        elif kept is not None:
            asked = step.name in redo
            found.append(Fate(step.name, its, "again", "asked for" if asked else "what it starts from is done again"))
        else:
            found.append(_not_there(plan, step, its, folder, done, wanted))
    return found


def taken_away(plan: Planned, folder: Path, *, fresh: bool = False) -> Iterator[tuple[Place, Path]]:
    """What steps are to read that lies in a run folder and will not stay there: where it was asked for, and its path.

    Args:
        fresh: what the folder holds is thrown away before; else what does not belong to the plan is set aside.
    """
    root = folder.resolve()
    read = {path: place for step in plan.steps for place, path in _read_by(step)}
    inside = {path: place for path, place in read.items() if path.resolve().is_relative_to(root) and path.exists()}
    if inside:
        stay = {fate.found for fate in fates(plan, folder) if fate.found == folder / fate.step and not fresh}
        staying = {path.resolve() for path in stay if path is not None}
        for path, place in inside.items():
            if not staying.intersection([path.resolve(), *path.resolve().parents]):
                yield place, path


def _read_by(step: Step) -> Iterator[tuple[Place, Path]]:
    """Where a step is told to read files and folders, and those; of models the teacher and the like."""
    for use in step.uses:
        yield from ((step.place_of(use), file.path) for _, file in files_of(use.options))
    for _, value in step.settings:
        if isinstance(value, File):
            yield step.place, value.path
        elif isinstance(value, ModelKeys):
            yield step.place, Path(value.path)


def _not_there(
    plan: Planned, step: Step, fingerprint: str, folder: Path, done: dict[str, Path], wanted: set[str]
) -> Fate:
    """The fate of a step whose result is not there: what was done in its place, and in what that differs."""
    if begun(folder, fingerprint) is not None:
        return Fate(step.name, fingerprint, "new", "interrupted; resumes")
    others = [path for its, path in done.items() if its not in wanted]
    before = next((path for path in others if _bare(path) == bare_name(step.name) and path.parent == folder), None)
    if before is None:
        return Fate(step.name, fingerprint, "new")
    changes = difference(_written(before / MANIFEST).get("facts") or {}, plan.facts(step))
    return Fate(step.name, fingerprint, "again", "; ".join(changes[:3]) + ("; ..." if len(changes) > 3 else ""))


def begun(folder: Path, fingerprint: str) -> Path | None:
    """The unfinished folder that a step resumes from; None where there is none."""
    return next((partial for partial in _partial(folder) if _mark(partial) == fingerprint), None)


def dependents(plan: Planned, names: Collection[str]) -> set[str]:
    """Steps by these names, and all that start from what they make."""
    reached = set(names)
    for step in plan.steps:
        if reached.intersection(step.inputs.values()):
            reached.add(step.name)
    return reached


def step_called(plan: Planned, name: str, flag: str) -> str:
    """Full name of a step given with or without its number.

    Raises:
        UnknownName: there is none.
    """
    names = [step.name for step in plan.steps]
    found = next((full for full in names if name in (full, bare_name(full))), None)
    if found is None:
        raise UnknownName(name, "step of this plan", names, where=flag)
    return found


def settle(folder: Path, chosen: list[Fate]) -> list[str]:
    """Puts kept steps in their places and sets aside what does not belong to the plan.

    Returns:
        a line for every folder that was set aside.
    """
    keep = {fate.found: fate.step for fate in chosen if fate.found is not None}
    done = set(keep.values())
    marks = {fate.fingerprint: f"{fate.step}{PARTIAL}" for fate in chosen if fate.step not in done}
    shelf, told = _next_shelf(folder), []
    for path in _steps_in(folder):
        if path in keep:
            continue
        name = _plain(path)
        if path.suffix == PARTIAL and _mark(path) in marks:
            keep[path] = marks.pop(_mark(path))
        elif path.suffix == PARTIAL and _is_empty(path):
            shutil.rmtree(path)
        else:
            (folder / SUMMARY).unlink(missing_ok=True)  # its report is of other results
            shelf.mkdir(parents=True, exist_ok=True)
            path.replace(shelf / name)
            told.append(f"{name} is now {shelf.relative_to(folder)}/{name}")
    # By way of names that no step has: 04 may become 05 while there is a 05 that becomes 06.
    away = {path: name for path, name in keep.items() if path.name != name or path.parent != folder}
    if away:
        (folder / SUMMARY).unlink(missing_ok=True)
    for path, name in away.items():
        path.replace(folder / f"{MOVING}{name}")
    for name in away.values():
        (folder / f"{MOVING}{name}").replace(folder / name)
    return told


def finished_steps(folder: Path) -> list[Path]:
    """Folders of the finished steps of a run, in order; none where it is no run."""
    return [path for path in _steps_in(folder) if path.suffix != PARTIAL and (path / MANIFEST).is_file()]


def unfinished_steps(folder: Path) -> list[Path]:
    """Folders of the steps of a run that were begun and are not finished, in order."""
    return list(_partial(folder))


def finished(folder: Path) -> dict[str, Path]:
    """Folders of finished steps by fingerprint; those in their places come before those set aside, newest first."""
    shelves = [path for path in (folder / OLD).glob("*") if path.name.isdecimal()]
    found: dict[str, Path] = {}
    for place in [folder, *sorted(shelves, key=lambda path: -int(path.name))]:
        for path in _steps_in(place):
            fingerprint = _recorded(path / MANIFEST) if path.suffix != PARTIAL else ""
            if fingerprint:
                found.setdefault(fingerprint, path)
    return found


def _recorded(manifest: Path) -> str:
    """The fingerprint in a manifest; "" where there is none."""
    try:
        stat = manifest.stat()
    except OSError:
        return ""
    return _read_once(manifest, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _read_once(manifest: Path, inode: int, modified_ns: int, size_bytes: int) -> str:
    fingerprint = _written(manifest).get("fingerprint")
    return fingerprint if isinstance(fingerprint, str) else ""


def _steps_in(folder: Path) -> list[Path]:
    """Folders of steps, finished or not, by name."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _bare(path) != _plain(path)]


def _partial(folder: Path) -> Iterator[Path]:
    yield from (path for path in _steps_in(folder) if path.suffix == PARTIAL)


def _plain(path: Path) -> str:
    """The name of the step that a folder belongs to."""
    return path.name.removeprefix(MOVING).removesuffix(PARTIAL)


def _bare(path: Path) -> str:
    return bare_name(_plain(path))


def _mark(path: Path) -> str:
    """Fingerprint of the step that left an unfinished folder; the mark goes just before the folder gets its name."""
    return str((_written(path / MARK) or _written(path / MANIFEST)).get("fingerprint", ""))


def _written(path: Path) -> dict[str, Any]:
    """A mapping in a JSON file; empty where there is none, or something else."""
    found = read_json(path)
    return found if isinstance(found, dict) else {}


def _next_shelf(folder: Path) -> Path:
    numbers = [int(path.name) for path in (folder / OLD).glob("*") if path.name.isdecimal()]
    return folder / OLD / str(max(numbers, default=0) + 1)


def _is_empty(path: Path) -> bool:
    """Whether nothing was done yet in an unfinished folder; its mark may be there, or half of it."""
    sweep(path)
    return not any(inner.is_file() and inner != path / MARK for inner in path.rglob("*"))
