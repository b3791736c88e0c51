"""What the steps of a plan take, in memory, on disk and in bits, and what of it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .contracts.options import in_file
from .estimate import Estimate, Sizes, bits_of
from .figures import size
from .grids import bits_per_weight
from .lighter import free_bytes, memory_told, room
from .model.config import ModelConfig
from .plan import Plan
from .run_folder import begun, fates
from .stage import Finding
from .stages import stages
from .storage import size_of


def told(
    plan: Plan,
    config: ModelConfig,
    device: str,
    *,
    offline: bool,
    processes: int,
    machines: int,
    folder: Path | None,
    fresh: bool,
) -> Iterator[Finding]:
    """What a plan takes, and where that is more than there is; the arguments are those of `preflight`."""
    free = free_bytes(device)
    sizes = Sizes(plan.model, config, plan.scheme, bits_per_weight, device, offline, processes)
    estimates = _estimates(plan, replace(sizes, free=room(free, device, processes)), machines)
    yield from memory_told(plan, estimates, sizes, disk_bytes=_disk(estimates), free=free)
    if folder is not None:
        yield from _room(plan, estimates, folder, fresh=fresh)


def estimate(
    plan: Plan,
    config: ModelConfig,
    device: str = "cpu",
    *,
    offline: bool = False,
    processes: int = 1,
    machines: int = 1,
) -> list[Estimate]:
    """Memory and disk of every step.

    Args:
        config: of the model to compress.
        offline: nothing may be fetched, config.json of a teacher included.
        processes: how many work together.
        machines: that they are on, as many on each.
    """
    fits = room(free_bytes(device), device, processes)
    sizes = Sizes(plan.model, config, plan.scheme, bits_per_weight, device, offline, processes, fits)
    return _estimates(plan, sizes, machines)


def _estimates(plan: Plan, sizes: Sizes, machines: int) -> list[Estimate]:
    here = sizes.processes // machines if sizes.device == "cpu" else 1
    works = [(step, stages()[step.stage]) for step in plan.steps]
    return [
        Estimate.of(step.name, stage.estimate(step, plan, sizes), here if stage.in_several(step) else 1)
        for step, stage in works
    ]


def bits(plan: Plan, config: ModelConfig) -> tuple[float | None, float] | None:
    """Bits per quantized weight, and per parameter in all, of the model a plan ends with; None where none is made.

    With a budget, nobody knows the former yet, and the latter is what may be taken.

    Raises:
        ModelError: layers cannot be quantized as asked.
    """
    making = [step for step in plan.steps if stages()[step.stage].makes_model]
    if not making:
        return None
    budget = plan.budget(making[0], config)
    if budget is not None:
        return None, 8 * budget / config.parameters
    return bits_of(plan.schemes(making[0], config), config, in_file(None, bits_per_weight))


def _disk(estimates: Sequence[Estimate]) -> int:
    """Disk space that steps take, in bytes: their results, and what the largest needs meanwhile."""
    meanwhile = max((found.disk_peak_bytes - found.disk_bytes for found in estimates), default=0)
    return sum(found.disk_bytes for found in estimates) + meanwhile


def _room(plan: Plan, estimates: Sequence[Estimate], folder: Path, *, fresh: bool) -> Iterator[Finding]:
    """The disk space that is still to be taken, against what is free: what lies in the run folder already counts."""
    there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(there).free
    needed = _disk(estimates)
    if needed > free and folder.is_dir():
        needed = needed - size_of(folder) if fresh else _disk_left(plan, estimates, folder)
    if needed > free:
        fix = "Free some space or choose another folder with -o."
        yield Finding("error", f"'{folder}' needs about {size(needed)} more; {size(free)} are free there.", fix)


def _disk_left(plan: Plan, estimates: Sequence[Estimate], folder: Path) -> int:
    """Disk space for the steps that a run folder does not hold yet, less what their unfinished folders hold."""
    undone = {fate.step: fate.fingerprint for fate in fates(plan, folder) if fate.state != "kept"}
    left = [found for found in estimates if found.step in undone]
    taken = 0
    for found in left:
        partial = begun(folder, undone[found.step])
        if partial is not None:
            taken += min(size_of(partial), found.disk_peak_bytes)
    return _disk(left) - taken
