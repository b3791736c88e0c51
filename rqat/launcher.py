"""Does one step in several processes, which torch's elastic launcher starts for it and ends with it.

    parent (`launch`)                 workers (`rqat.worker`), one for each GPU
    order.json             ->         what to do; each makes the plan again and compares the step's fingerprint
    progress display, log  <-         relay: what the first worker shows, logs and prints, and that it saved
    results                <-         results.json, by the first worker, which has written the step's files as well
    RqatError, WorkerFailed  <-       error.json: the first of them that failed; the launcher then ends the others

All of this lies in a temporary folder. What a worker prints by itself goes to files there, and is shown when it fails
without a word. A worker ends by itself when its parent is gone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DiskError, RqatError, RunError
from .job import Bar, Job, Progress
from .model.memory import give_back
from .nodes import Nodes
from .processes import LONGEST, WorkerFailed
from .quiet import hush
from .stage import Step
from .storage import read_json, write_json

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

ORDER, RELAY, RESULTS = "order.json", "relay", "results.json"

START = "import json, sys; sys.path[:] = json.load(open(sys.argv[1]))['path']; from rqat.worker import main; main()"
"""The program of a worker, which finds the same modules as its parent."""

SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}

GRACE_S = 5
"""Seconds that a worker is left to end before it is killed."""

CONSEQUENCES = frozenset({signal.SIGTERM, signal.SIGABRT})
"""Signals that end a worker because another has failed: the launcher's, and NCCL's."""

NOISY = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")

SHOWN = 4000
"""Characters shown of what a worker has printed that failed without a word."""


def check_processes(count: int, device: str) -> None:
    """Looks whether `count` processes can work together here.

    Raises:
        RqatError: there are fewer GPUs than processes, or the model is to be sharded.
    """
    for variable, name in SHARDED.items():
        if os.environ.get(variable, "").lower() == "true":
            raise RqatError(
                f"{variable} asks for {name}, by which accelerate splits a model over processes; rqat does so itself.",
                hint=f"Start rqat without {variable}; `shard: true` of a train step splits its model.",
            )
    if device != "cuda":
        return
    import torch

    there = torch.cuda.device_count()
    if count > there:
        raise RqatError(
            f"{count} processes were asked for, and there {f'are {there} GPUs' if there > 1 else 'is 1 GPU'}.",
            hint=f"Use --processes {there}.",
        )


def launch(job: Job, step: Step) -> dict[str, Any]:
    """Does the work of `step` in `job.workers` processes, on each of `job.nodes`; see the module.

    Returns:
        What the stage's `run` returns in the first, on the first machine; nothing on others.

    Raises:
        RqatError: what a worker reports, or it was killed.
        WorkerFailed: a worker failed otherwise.
    """
    fingerprint = job.plan.fingerprint(step)
    job.checkpoints.release()  # every process loads its own
    job.original.release()
    give_back(job.device)
    with tempfile.TemporaryDirectory(prefix="rqat-") as name:
        folder = Path(name)
        write_json(folder / ORDER, _order(job, step))
        with _relayed(folder / RELAY, job):
            job.nodes.call(job.folder, step.name, fingerprint)
            _run_workers(job.workers, folder, job.nodes, fingerprint)
        results: dict[str, Any] = {} if job.nodes.rank else read_json(folder / RESULTS)
        return results


def _order(job: Job, step: Step) -> dict[str, Any]:
    """All that a worker needs, as JSON."""
    return {
        "parent": os.getpid(),
        "path": sys.path,
        "levels": {name: logging.getLogger(name).getEffectiveLevel() for name in ("", "rqat")},
        "recipe": job.plan.recipe.model_dump(mode="json"),
        "origins": [[keys, origin] for keys, origin in job.plan.place.origins.items()],
        "step": step.name,
        "fingerprint": job.plan.fingerprint(step),
        "folder": str(job.folder),
        "device": job.device,
        "offline": job.offline,
    }


def _run_workers(count: int, folder: Path, nodes: Nodes, run: str) -> None:
    """Starts the workers of this machine and waits for them.

    Args:
        run: what all machines call it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    alone: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    met = {"rank": nodes.rank, "timeout": int(LONGEST.total_seconds())}
    several = {"rdzv_backend": "static", "rdzv_endpoint": nodes.address, "rdzv_configs": met}
    config = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=count,
        run_id=folder.name if nodes.count == 1 else run,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL),
        # Ctrl-C stays a KeyboardInterrupt, on which the launcher ends the workers as well.
        signals_to_handle="SIGTERM",
        **_grace(LaunchConfig),
        **(alone if nodes.count == 1 else several),
    )
    hush(*NOISY, level=logging.CRITICAL)  # what they say of a worker that failed is said by `_cause`
    before = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(config, sys.executable)("-P", "-c", START, str(folder / ORDER))
    except ChildFailedError as error:
        raise _cause(error, count, folder) from None
    except SignalException as ended:
        raise KeyboardInterrupt(int(ended.sigval)) from None  # which the command tells, as it does of Ctrl-C
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _grace(config: type) -> dict[str, Any]:
    """How long workers have to end once one has, for a launch configuration that can be told: torch 2.11's cannot."""
    name = "shutdown_timeout"
    return {name: GRACE_S} if name in {field.name for field in dataclasses.fields(config)} else {}


def _cause(error: ChildFailedError, count: int, folder: Path) -> Exception:
    """What to raise for the worker that failed first; others then fail as they wait for it."""
    since = min(failure.timestamp for failure in error.failures.values())
    soon = {rank: failure for rank, failure in error.failures.items() if failure.timestamp <= since + GRACE_S}
    codes = {rank: failure.exitcode for rank, failure in soon.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and -code not in CONSEQUENCES]
    said = {rank: failure.error_file_data for rank, failure in soon.items()}
    told = sorted((data["time"], rank) for rank, data in said.items() if "time" in data)
    rank = killed[0] if killed else told[0][1] if told else min(codes, key=lambda rank: -codes[rank] in CONSEQUENCES)
    name = f"process {rank} of {count}"
    if codes[rank] == -signal.SIGKILL:
        hint = "Perhaps memory has run out: lower micro_batch, or batch. The same command resumes from what was saved."
        return RunError(f"{name} was killed.", hint=hint)
    if not killed and told:
        data = said[rank]
        if "hint" not in data:
            return WorkerFailed(data["message"])
        kind = DiskError if codes[rank] == DiskError.exit_code else RqatError
        return kind(data["message"], hint=data["hint"])
    printed = "".join(path.read_text(errors="replace") for path in folder.glob(f"*/attempt_0/{rank}/std*.log"))
    return WorkerFailed(f"{printed[-SHOWN:]}\n{name} ended with exit code {codes[rank]}.")


@contextmanager
def _relayed(path: Path, job: Job) -> Iterator[None]:
    """Shows meanwhile, in a thread, what the first worker writes to the pipe at `path`."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait here for the worker
    writer = os.open(path, os.O_WRONLY)  # while it is open the pipe has no end
    os.set_blocking(reader, True)
    shower = threading.Thread(target=_show, args=[reader, job.progress, job.saved], daemon=True)
    shower.start()
    try:
        yield
    finally:
        os.close(writer)
        shower.join(GRACE_S)


def _show(reader: int, progress: Progress, saved: Callable[[], None]) -> None:
    """Shows messages up to the end of the pipe; one that is not whole is the last of a worker that was killed.

    Args:
        saved: called when a worker has written a checkpoint; never raises.
    """
    bars: list[Any] = []
    tasks: list[Bar] = []
    with open(reader, encoding="utf-8") as pipe, suppress(ValueError):
        for line in pipe:
            word, *given = json.loads(line)
            if word == "task":
                bars.append(progress.task(*given))
                tasks.append(bars[-1].__enter__())
            elif word == "update":
                tasks[-1].update(*given)
            elif word == "done":
                tasks.pop()
                bars.pop().__exit__(None, None, None)
            elif word == "saved":
                saved()
            elif word == "log":
                name, level, text = given
                logging.getLogger(name).log(level, "%s", text)
            else:
                sys.stderr.write(*given)
    for bar in reversed(bars):
        with suppress(EOFError):
            bar.__exit__(EOFError, EOFError(), None)
