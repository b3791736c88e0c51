"""Checkpoints of training in progress: what they are made of on disk, and which of them are whole.

    checkpoint-40/
      model-0000N-of-0000M.safetensors     latents, scales, zero points, masters, moments: as the optimizer holds them
      model.safetensors.index.json         which tensor is in which file
      state.json                           all the rest: optimizer and schedule, random states, the Trainer's counters
      trainer_state.json                   the same counters, as transformers' Trainer reads them

Of a model that is split over processes (`shards.py`) each writes what it holds, tensors and the optimizer's part of
state.json, into a folder `part-<rank>` of its own; they lie on one file system.

The tensors lie as torch's distributed checkpoint writes them in its safetensors form, and are read by it; everything
else is JSON: no pickle, so that a checkpoint of someone else runs no code. They are written by safetensors itself,
since torch makes each file in memory first and keeps Python from all else meanwhile, training among it: 1.3 GB took
it 24 s, and safetensors 5 s (2 busy cores, 2026-11-29). A folder has its name once all in it is on disk, and only
then does the one before it go; what has another name is the rest of an attempt.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RqatError, RunError
from ..storage import PARTIAL, read_json, sync_folder
from .shards import ALL, Share

FORMAT = 1
"""Version of this layout."""

OPTIMIZER = "optimizer"
"""What a checkpoint calls the optimizer's state."""

STATE, TRAINER_STATE = "state.json", "trainer_state.json"

INDEX = "model.safetensors.index.json"

FILE_BYTES = 1 << 30
"""Of tensors in one file, about: a network disk is spared files of many gigabytes."""

LOOK_S = 0.05
"""Seconds between two looks whether the others have written their parts."""

_FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass
class Snapshot:
    """A moment of training that can be written while training goes on.

    Attributes:
        step: optimizer steps done.
        tensors: by name, on the CPU, nobody else's.
        state: what remains: JSON, with the names of tensors in their places; see `taken_apart`.
        trainer: the Trainer's state, as JSON.
        share: of what is trained, what the tensors are.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    trainer: dict[str, Any]
    share: Share = ALL


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into, beside those there are in `folder`."""
    partial = folder / f"checkpoint-{step}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Writes a snapshot, flushes it to disk, gives it its name, and removes those before it.

    Of several processes that hold a part each, all call this after the first has called `begin_checkpoint`; it waits
    for the parts of the others, and does the rest.

    Args:
        folder: of all checkpoints.

    Raises:
        OSError, or another error of torch's: it cannot be written. Those before are as they were.
    """
    final, share = folder / f"checkpoint-{snapshot.step}", snapshot.share
    state = {"format": FORMAT, **snapshot.state}
    if share.count == 1:
        partial = begin_checkpoint(folder, snapshot.step)
        _write_tensors(partial, snapshot.tensors)
    else:
        partial = final.with_name(f"{final.name}{PARTIAL}")
        _write_part(partial, snapshot, {"format": FORMAT, OPTIMIZER: state.pop(OPTIMIZER)})
        if share.rank:
            return final
        while not all(_part(partial, rank).exists() for rank in range(share.count)):
            time.sleep(LOOK_S)  # a process that fails ends all
        state["parts"] = share.count
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    (partial / TRAINER_STATE).write_text(json.dumps(snapshot.trainer), encoding="utf-8")
    sync_folder(partial)
    if final.exists():
        _remove(final)
    partial.replace(final)
    sync_folder(folder, deep=False)
    for path in folder.glob("checkpoint-*"):
        if path != final:
            _remove(path)
    return final


def _part(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"part-{rank}"


def _write_part(partial: Path, snapshot: Snapshot, state: dict[str, Any]) -> None:
    part = _part(partial, snapshot.share.rank)
    unnamed = part.with_name(f"{part.name}{PARTIAL}")
    unnamed.mkdir()
    _write_tensors(unnamed, snapshot.tensors)
    (unnamed / STATE).write_text(json.dumps(state), encoding="utf-8")
    sync_folder(unnamed)
    unnamed.replace(part)


def parts_in(checkpoint: Path) -> list[Path]:
    """Folders of the parts that a checkpoint was written in, by rank: `read_checkpoint` reads each; none if in one."""
    state = read_json(checkpoint / STATE)
    count = state.get("parts", 0) if isinstance(state, dict) else 0
    return [_part(checkpoint, rank) for rank in range(count)] if isinstance(count, int) else []


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and the rest of a whole checkpoint.

    Of one in parts only the rest, without the optimizer.

    Raises:
        RunError: it is damaged, or of another version.
    """
    with whole(checkpoint):
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, and this version reads {FORMAT}")
        return {} if "parts" in state else _read_tensors(checkpoint), state


@contextmanager
def whole(checkpoint: Path) -> Iterator[None]:
    """Around reading a checkpoint.

    Raises:
        RunError: it is damaged, whatever torch or Python say of that, which they do in a dozen ways.
    """
    try:
        yield
    except RqatError:
        raise
    except Exception as error:
        raise RunError(
            f"'{checkpoint}' cannot be resumed from: {' '.join(str(error).split())[:200]}.",
            hint="Remove it: the step then starts over.",
        ) from error


def last_complete(folder: Path, *, clean: bool = True) -> Path | None:
    """The newest checkpoint in a folder of them.

    Args:
        clean: the rest of interrupted attempts is removed; for one process of several.
    """
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        match = _FOLDER.fullmatch(path.name)
        if match is not None:
            found[int(match[1])] = path
        elif clean:
            shutil.rmtree(path, ignore_errors=True)
    return found[max(found)] if found else None


def step_of(checkpoint: Path | None) -> int:
    """Optimizer steps done at a checkpoint; 0 for None."""
    match = _FOLDER.fullmatch(checkpoint.name) if checkpoint is not None else None
    return int(match[1]) if match else 0


def processes_of(checkpoint: Path) -> int:
    """How many processes trained together when a checkpoint was saved: each has its random state there."""
    state = read_json(checkpoint / STATE)
    random = state.get("random") if isinstance(state, dict) else None
    return max(1, len(random)) if isinstance(random, list) else 1


def taken_apart(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """`value`, made of dicts, lists, tuples, numbers and tensors, as JSON; its tensors go into `tensors` by their path.

    Args:
        name: path of `value`.
    """
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        inner = [
            [key, taken_apart(item, tensors, f"{name}/{key}" if name else str(key))] for key, item in value.items()
        ]
        return {"mapping": inner}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [taken_apart(item, tensors, f"{name}/{number}") for number, item in enumerate(value)]}
    return value


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The way back from `taken_apart`."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "mapping":
        return {key: put_together(item, tensors) for key, item in inner}
    made = [put_together(item, tensors) for item in inner]
    return tuple(made) if kind == "tuple" else made


def check_kinds(value: Any, fresh: Any, name: str) -> None:
    """Compares what is to be taken over with what is there: the same keys and lengths, numbers where numbers are.

    Args:
        name: path of `value`, for the message.

    Raises:
        ValueError: naming what is of another kind.
    """
    if isinstance(fresh, (list, dict)):
        if type(value) is not type(fresh) or len(value) != len(fresh):
            raise ValueError(f"its {name} is none")
        for key, inner in fresh.items() if isinstance(fresh, dict) else enumerate(fresh):
            if isinstance(value, dict) and key not in value:
                raise ValueError(f"its {name}/{key} is missing")
            check_kinds(value[key], inner, f"{name}/{key}")
    elif fresh is not None and _kind(value) is not _kind(fresh):
        raise ValueError(f"its {name} is none")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint's name from it before anything in it goes, so that none is ever found gutted."""
    if _FOLDER.fullmatch(checkpoint.name):
        checkpoint = checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.old"))
    shutil.rmtree(checkpoint)


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    files: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > FILE_BYTES:
            files.append({})
            filled = 0
        files[-1][name] = tensor.contiguous()
        filled += tensor.nbytes
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for file, inside in zip(names, files, strict=True):
        save_file(inside, str(folder / file), metadata={"format": "pt"})
    weight_map = {name: file for file, inside in zip(names, files, strict=True) for name in inside}
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from torch.distributed import checkpoint as distributed

    told = distributed.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    there = set((read_json(folder / INDEX) or {}).get("weight_map", {}))
    if there != set(told):
        raise ValueError(f"{len(told)} of its {len(there)} tensors are there")
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in told.items()}  # type: ignore[union-attr]
    with _alone():
        distributed.load(tensors, storage_reader=distributed.HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


@contextmanager
def _alone() -> Iterator[None]:
    """Around what torch does for many processes and is asked to do for one: no warning of that, and the plain error."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:  # which is no Exception, and shows the traceback of every process
        raise next(iter(error.failures.values()))[0] from None
