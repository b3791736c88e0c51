"""When training is saved: after some steps or some time, after its last step, and when it is told to end.

What is to be saved is copied between two steps and written by a thread while the next ones run. A signal (Ctrl-C,
SIGTERM, SIGHUP) between or within steps ends training at once, but for an update that is under way; what the last whole
step left is then saved first, where that is quick. Within a step the optimizer does not change before its update, so
that the state after the step before needs no copy: only what else changes meanwhile is noted after every step.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import RunError
from ..figures import seconds, size
from ..processes import Processes
from ..storage import explained, sync_file
from .checkpoints import (
    OPTIMIZER,
    TRAINER_STATE,
    Snapshot,
    begin_checkpoint,
    check_kinds,
    parts_in,
    put_together,
    read_checkpoint,
    step_of,
    taken_apart,
    whole,
    write_checkpoint,
)
from .optimizer import QuantizedOptimizer
from .random_states import random_state, set_random_state
from .shards import ALL, Share

log = logging.getLogger("rqat")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

QUICK_S = 10.0
"""How long an ending process takes to save without more ado."""

WORTH = 0.1
"""A save that takes longer is made if it takes less than this share of the time that went into what it saves."""

SMALL_S = 0.5
"""Longest that steps wait for what is being written: a small checkpoint is on disk before the next step begins."""

BYTES_PER_S = 5e8
"""Of writing, before it has been measured."""

REPLACED = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
"""What a Trainer would read of a checkpoint, partly by pickle; its own counters, which are JSON, it does read."""


class _Told(KeyboardInterrupt):
    """A signal came; its number is the argument. What knows Ctrl-C knows this, too."""


@dataclass
class _Boundary:
    """What changes within a step, as it was after the one before."""

    step: int
    trainer: dict[str, Any]
    scheduler: dict[str, Any]
    random: dict[str, Any]


class Saving(TrainerCallback):
    """Saves a training; the last of its trainer's callbacks, so that a step's line in the log comes before.

    Args:
        folder: of the checkpoints.
        optimizer, scheduler: what is trained with.
        every_steps: steps between two checkpoints; None leaves it to the time.
        every_s: seconds between two checkpoints.
        processes: those that train together: the first writes, and all have to have trained the same weights.
        log: training.jsonl, which has to be on disk as far as a checkpoint goes.
        then: called when a checkpoint is on disk, by the thread that wrote it; never raises.
        share: what this process holds of the model. Where that is a part, every process writes its own.
    """

    def __init__(
        self,
        folder: Path,
        optimizer: QuantizedOptimizer,
        scheduler: Any,
        *,
        every_steps: int | None,
        every_s: float,
        processes: Processes,
        log: Path,
        then: Callable[[], None] = lambda: None,
        share: Share = ALL,
    ) -> None:
        self.folder, self.optimizer, self.scheduler, self.log = folder, optimizer, scheduler, log
        self.every_steps, self.every_s, self.processes = every_steps, every_s, processes
        self.then, self.share = then, share
        self.saved = 0
        self._random: dict[str, Any] | None = None
        self._since = time.monotonic()
        self._boundary: _Boundary | None = None
        self._updating = False
        self._told: int | None = None
        self._ending = False
        self._host: dict[str, Tensor] = {}
        self._writer: threading.Thread | None = None
        self._failed: Exception | None = None
        self._bytes_per_s = BYTES_PER_S

    # ------------------------------------------------------------------------------------------------- resuming

    def attach(self, trainer: Trainer) -> None:
        """Has a trainer resume from checkpoints of this kind: `train(resume_from_checkpoint=...)`."""
        for name in REPLACED:
            setattr(trainer, name, lambda *_, **__: None)
        changed: Any = trainer
        changed._load_from_checkpoint = lambda checkpoint, *_: _trainer_state(Path(checkpoint))
        changed._load_optimizer_and_scheduler = lambda checkpoint: self.resume(Path(checkpoint))
        changed._load_rng_state = self._resume_random

    def resume(self, checkpoint: Path) -> TrainerState:
        """Puts the state of a checkpoint into optimizer and schedule; random states follow when the data is skipped.

        Returns:
            the Trainer's.

        Raises:
            RunError: it is damaged, or of another model.
        """
        tensors, state = read_checkpoint(checkpoint)
        with whole(checkpoint):
            parts, share = parts_in(checkpoint), self.share
            if share.count == (len(parts) or 1):
                own = read_checkpoint(parts[share.rank]) if parts else (tensors, state)
                self.optimizer.load_state_dict(_optimizer(*own))
            else:
                saved = [_optimizer(*read_checkpoint(part)) for part in parts] or [_optimizer(tensors, state)]
                self.optimizer.load_parts(saved, share)
            schedule = put_together(state["scheduler"], tensors)
            check_kinds(schedule, self.scheduler.state_dict(), "scheduler")
            self.scheduler.load_state_dict(schedule)
            of_all = state["random"]
            self._random = of_all[self.processes.rank] if len(of_all) == self.processes.count else None
            if self._random is not None:  # tried here, where what is wrong with it is told
                now = random_state()
                try:
                    set_random_state(self._random)
                finally:
                    set_random_state(now)
            self.saved = int(state["step"])
        return _trainer_state(checkpoint)

    def _resume_random(self, _: str) -> None:
        if self._random is not None:
            set_random_state(self._random)

    # --------------------------------------------------------------------------------------------------- saving

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self._since = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No step begins that could not be saved.

        Raises:
            RunError: a checkpoint could not be written.
        """
        if self._failed is not None:
            self.finish()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """From here to the end of the step a signal waits."""
        self._updating = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The end of a step that is not logged."""
        if not control.should_log:
            self._end_step(state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """The end of a step, behind its line in the log."""
        if "loss" in given["logs"]:
            self._end_step(state)

    def _end_step(self, state: TrainerState) -> None:
        """Notes what the step left, saves if it is time, and ends training if that was asked for meanwhile.

        Raises:
            RunError: see `_save`.
        """
        trainer = {one.name: getattr(state, one.name) for one in fields(state)}
        trainer |= {"log_history": [], "stateful_callbacks": {}}  # the first is training.jsonl's, and grows
        self._boundary = _Boundary(state.global_step, trainer, self.scheduler.state_dict(), random_state())
        last = state.global_step >= state.max_steps
        if last or self._is_time(state.global_step):
            self._save(self._boundary, ended=last)
        if last:
            self.finish()
        self._updating = False
        if self._told is not None:
            raise _Told(self._told)

    def _is_time(self, step: int) -> bool:
        """Whether a checkpoint is due; by the clock of the first of several processes."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        late = time.monotonic() - self._since >= self.every_s
        return bool(self.processes.gather("late" if late else "")[0])

    def _save(self, at: _Boundary, *, ended: bool = False) -> None:
        """Copies what is to be saved and has it written meanwhile.

        Args:
            ended: no step follows, so that only what the results are made of is saved.

        Raises:
            RunError: the one before could not be written, or another process has trained other weights.
        """
        self.finish()
        self._since = time.monotonic()
        if self.share.count > 1 and self.processes.leads:
            with explained(self.folder):
                begin_checkpoint(self.folder, at.step)  # before the others, who wait below, write into it
        randoms = self._gathered(at)
        self.saved = at.step
        if not self.processes.leads and self.share.count == 1:
            return
        tensors: dict[str, Tensor] = {}
        parts = {OPTIMIZER: self.optimizer.state_dict(moments=not ended), "scheduler": at.scheduler}
        state = {name: taken_apart(part, tensors, name) for name, part in parts.items()}
        state |= {"step": at.step, "random": randoms}
        snapshot = Snapshot(at.step, self._copied(tensors), state, at.trainer, self.share)
        self._writer = threading.Thread(target=self._write, args=[snapshot], name="rqat-checkpoint", daemon=True)
        self._writer.start()
        self._writer.join(SMALL_S)
        if not self._writer.is_alive():
            self.finish()

    def _gathered(self, at: _Boundary) -> list[dict[str, Any]]:
        """Random states of all processes.

        Raises:
            RunError: another process has trained other weights.
        """
        if self.processes.count == 1:
            return [at.random]
        digest = self.optimizer.digest() if self.share.count == 1 else ""  # of parts, which are different
        all_of_them = self.processes.gather(json.dumps({"digest": digest, "random": at.random}))
        told = [json.loads(text) for text in all_of_them]
        others = [rank for rank, one in enumerate(told) if one["digest"] != told[0]["digest"]]
        if others:
            raise RunError(
                f"step {at.step}: processes 0 and {others[0]} of {len(told)} have different weights.",
                hint="All must run the same versions on the same kind of device, and an objective must compute its "
                "loss by way of the model that it is handed. One process can resume from the last checkpoint.",
            )
        return [one["random"] for one in told]

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, in memory that is taken once."""
        for name, tensor in tensors.items():
            held = self._host.get(name)
            if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
                self._host[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._host[name].copy_(tensor)
        return {name: self._host[name] for name in tensors}

    def _write(self, snapshot: Snapshot) -> None:
        began = time.monotonic()
        try:
            with explained(self.folder):
                if self.processes.leads and self.log.exists():
                    sync_file(self.log)
                write_checkpoint(self.folder, snapshot)
        except Exception as error:  # told by the thread that trains
            self._failed = error
            return
        written = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        self._bytes_per_s = max(written, 1) / max(time.monotonic() - began, 1e-3)
        if self.processes.leads:
            self.then()

    def finish(self, patience_s: float | None = None) -> None:
        """Waits for what is being written.

        Raises:
            RunError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join(patience_s)
            self._writer = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    # -------------------------------------------------------------------------------------------------- signals

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Around a training: a signal that would end the process ends the training, and is raised again after saving.

        In several processes, and in a thread that gets no signals, they do as they always do.
        """
        before: dict[int, Any] = {}
        if self.processes.count == 1 and threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def tell(number: int, _: Any) -> None:
            if self._ending:  # once more: no patience
                restore()
                signal.raise_signal(number)
            self._told = number
            if not self._updating:
                raise _Told(number)

        for number in before:
            signal.signal(number, tell)
        try:
            yield
        except _Told:
            self._ending = True
            try:
                self._save_quickly()
            finally:
                restore()
            signal.raise_signal(self._told or signal.SIGINT)
            raise KeyboardInterrupt from None
        except BaseException:
            with suppress(Exception):
                self.finish(QUICK_S)
            raise
        finally:
            restore()

    def _save_quickly(self) -> None:
        """Saves the last whole step, if that is quick or little beside what would be lost.

        Whatever prevents it is for the next run.
        """
        with suppress(Exception):
            at = self._boundary
            held = sum(tensor.nbytes for state in self.optimizer.state.values() for tensor in _tensors(state))
            held += sum(tensor.nbytes for bucket in self.optimizer.buckets for tensor in bucket.state().values())
            takes, lost = held / self._bytes_per_s, time.monotonic() - self._since
            if at is not None and at.step > self.saved and takes < max(QUICK_S, WORTH * lost):
                if takes > QUICK_S:
                    log.warning(
                        "Saves step %d before it ends (%s, about %s); a second signal ends it at once.",
                        at.step, size(held), seconds(takes),
                    )  # fmt: skip
                self._save(at)
                self.finish()
            self.finish(QUICK_S)


def _optimizer(tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = put_together(state[OPTIMIZER], tensors)
    return found


def _trainer_state(checkpoint: Path) -> TrainerState:
    with whole(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        fresh = vars(TrainerState()).items()
        kinds: dict[str, tuple[type, ...]]
        kinds = {name: (int, float) if type(value) is int else (type(value),) for name, value in fresh}
        kinds["train_batch_size"] = (int,)  # what else begins as None stays so: no best model is looked for
        wrong = [name for name, kind in kinds.items() if type(getattr(state, name)) not in kind]
        if wrong or state.global_step != step_of(checkpoint):
            raise ValueError(f"its {wrong[0] if wrong else 'global_step'} is none")
        return state


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]
