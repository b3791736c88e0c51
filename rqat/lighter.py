"""Which keys make a step take less memory, and by how much: said in the plan, and where memory ran out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import RqatError, RunError
from .estimate import LIBRARIES_BYTES, Estimate, Sizes
from .figures import size
from .grids import bits_per_weight
from .keys import Neutral
from .model.config import read_config
from .model.memory import MARGIN, available_bytes
from .stage import Finding, Planned, Step
from .stages import stages

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""What errors say of it that have no type of their own: of CUDA itself, of torch on a CPU, of cuBLAS and cuDNN."""

HOPELESS = 4
"""How many times what is free an estimate has to be for a step not to be begun; see `MARGIN`."""

QUERY = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")


def advice(step: Step, plan: Planned, sizes: Sizes, sharing: int = 1, free: int | None = None) -> str:
    """The keys of a step that help, each with a smaller value and what that saves by the estimate; "" for none.

    Args:
        sharing: processes that share a memory, of which each saves as much.
        free: bytes that a step may take; a value that is small enough for them is named, where there is one.
    """
    stage = stages()[step.stage]
    before = stage.estimate(step, plan, sizes).memory
    found = []
    for key in stage.lighter(step, sizes.device):
        smaller = [(value, stage.estimate(one, plan, sizes).memory) for value, one in _smaller(step, key, sizes.device)]
        fits = (one for one in smaller if free is not None and (one[1] + LIBRARIES_BYTES) * sharing <= free)
        value, needed = next(fits, smaller[0])
        saved = before - needed
        if saved > 0:
            shown = str(value).lower() if isinstance(value, bool) else value
            found.append(
                (saved, f"{step.place.at(key).dotted or key}={shown} saves about {size(int(saved * sharing))}")
            )
    return "; ".join(text for _, text in sorted(found, key=lambda one: -one[0]))


def _smaller(step: Step, key: str, device: str) -> Iterator[tuple[Any, Step]]:
    """Smaller values of a key, with the step that has them: one, or more and more of a key that decides no result."""
    stage = stages()[step.stage]
    while (found := stage.lighter(step, device)).get(key) is not None:
        step = stage.changed(step, key, found[key])
        yield found[key], step
        if not _is_neutral(step, key):
            return


def _is_neutral(step: Step, key: str) -> bool:
    field = type(step.settings).model_fields.get(key)  # else it is an option of a part
    return field is not None and Neutral.marks(field)


def memory_told(
    plan: Planned, estimates: Sequence[Estimate], sizes: Sizes, *, disk_bytes: int, free: int | None
) -> Iterator[Finding]:
    """The largest memory of a plan, against what is free, and its disk space; nothing where there are no steps.

    On the CPU the processes of a machine share its memory, and what they take together counts.

    Args:
        free: bytes on the device; None where the system does not say.
    """
    if not estimates:
        return
    largest = max(estimates, key=lambda found: found.together_bytes)
    shared, step = largest.sharing > 1, plan.step(largest.step)
    each = f", {size(largest.memory_bytes)} in each of {largest.sharing} processes," if shared else ""
    text = f"about {size(largest.together_bytes)} of memory at {step.name}{each}"
    text = f"{text}{' and' if shared else ','} {size(disk_bytes)} of disk in all (estimates)."
    if free is None or largest.together_bytes <= free:
        yield Finding("note", text)
        return
    what = "This machine" if sizes.device == "cpu" else "The GPU"
    fixes = [advice(step, plan, sizes, largest.sharing, free)]
    if shared:
        alone = stages()[step.stage].estimate(step, plan, replace(sizes, processes=1)).memory + LIBRARIES_BYTES
        fixes.append(f"--processes 1 takes about {size(int(alone))}")
    fix = "; ".join(filter(None, fixes)) or "Use a smaller model, or a device with more memory."
    told = f"{text} {what} has {size(free)} of memory free."
    yield Finding("warning", told, f"{fix}.".replace("..", "."), about=f"memory at {step.name}")


def needed_bytes(
    step: Step, plan: Planned, device: str, processes: int = 1, chosen: Mapping[str, int] | None = None
) -> int:
    """Memory that a step takes by the estimate; 0 where the model cannot be read.

    Args:
        chosen: what keys come to that leave it to the free memory; without, the least.
    """
    step = step.with_settings(step.settings.model_copy(update=dict(chosen or {})))
    try:
        return int(stages()[step.stage].estimate(step, plan, _sizes(plan, device, processes)).memory)
    except RqatError:
        return 0


def room_for(step: Step, plan: Planned, device: str, processes: int, held_bytes: int) -> Mapping[str, int]:
    """What keys of a step come to, about to run, that leave it to the free memory.

    Args:
        held_bytes: of what is in memory already and counted in the estimate.
    """
    free = available_bytes(device)
    fits = room(None if free is None else free + held_bytes, device, processes)
    return stages()[step.stage].estimate(step, plan, _sizes(plan, device, processes, fits)).chosen


def room(free: int | None, device: str, processes: int) -> int | None:
    """What the estimate of a process may come to where so much memory is free; a GPU is one process's alone."""
    return None if free is None else int(free / MARGIN / (processes if device == "cpu" else 1))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this, or what led to it, says that a device or the machine has no more memory, by whatever name."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        told = isinstance(one, RuntimeError) and any(text in str(one) for text in OUT_OF_MEMORY)
        if told or isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError":  # torch's own
            return True
        seen.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


class Hopeless(MemoryError):
    """An estimate is so far above the memory that is free, in bytes, that no error of the estimate explains it."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"it takes about {size(needed)} by the estimate, and {size(free)} are free.")
        self.free = free


def refuse_hopeless(needed: int, device: str) -> None:
    """Before a step that cannot fit: the system would end this process, or others, in the midst of it.

    Raises:
        Hopeless: it cannot.
    """
    available = available_bytes(device)
    if available is not None and needed > HOPELESS * available:
        raise Hopeless(needed, available)


def ran_out(step: Step, plan: Planned, device: str, error: BaseException) -> RunError:
    """The error for a step that found no more memory, on its device or on the machine."""
    free = error.free if isinstance(error, Hopeless) else None
    try:
        keys = advice(step, plan, _sizes(plan, device), free=free)
    except RqatError:
        keys = ""
    told, own = (
        (error.message, error.hint) if isinstance(error, RqatError) else (str(error) or type(error).__name__, "")
    )
    kept = [key for key in stages()[step.stage].lighter(step, device) if _is_neutral(step, key)]
    goes_on = f"With another {' or '.join(kept)} the same command goes on from what is saved." if kept else ""
    hints = (f"{keys}." if keys else own or "Use a smaller model, or a device with more memory.", goes_on)
    return RunError(
        f"{step.name}: out of memory on {device}: {' '.join(told.split())[:160]}", hint=" ".join(filter(None, hints))
    )


def _sizes(plan: Planned, device: str, processes: int = 1, free: int | None = None) -> Sizes:
    """Of a plan whose model is there already: a step is about to run, or has run."""
    config = read_config(plan.model, offline=True)
    return Sizes(plan.model, config, plan.scheme, bits_per_weight, device, True, processes, free)


def free_bytes(device: str) -> int | None:
    """Memory that is free for use on a device; None where the system does not say. Imports no torch."""
    if device == "cpu":
        return available_bytes()
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        told = subprocess.run(
            [*QUERY, *([f"--id={visible}"] if visible else [])], capture_output=True, text=True, timeout=10, check=True
        ).stdout
        return min(int(line) for line in told.split()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
