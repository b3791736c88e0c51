"""What runs a cell's command: a process on this machine, with a GPU or a share of one; or a cluster's job."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ..errors import RqatError

GRACE_S = 5
"""Seconds that a process is left to end before it is killed."""


class Running(Protocol):
    """A command that was started."""

    def code(self) -> int | None:
        """Its exit code; None while it has none."""

    def cancel(self) -> None:
        """Ends it."""


class Executor(Protocol):
    """Starts commands.

    Attributes:
        places: how many may run at the same time.
    """

    places: int

    def start(self, name: str, command: Sequence[str]) -> Running:
        """Starts a command; what it prints is added to `<logs>/<name>.log`, or where the cluster keeps it."""


class Local:
    """Processes on this machine.

    Side by side, each is told to use its share of the cores: several that use them all hold each other up.

    Args:
        logs: folder of what they print.
        places: how many run at the same time; more of them than GPUs share these out, in turn.
        gpus: numbers of the GPUs; none leaves the processes what there is.
    """

    def __init__(self, logs: Path, places: int, gpus: Sequence[str] = ()) -> None:
        self.logs, self.places = logs, places
        self._free = [gpus[place % len(gpus)] for place in range(places)] if gpus else []
        self._threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places))} if places > 1 else {}

    def start(self, name: str, command: Sequence[str]) -> Running:
        """See `Executor`."""
        gpu = self._free.pop(0) if self._free else None
        self.logs.mkdir(parents=True, exist_ok=True)
        environment = self._threads | os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=_die_with_parent
            )
        return _Process(process, lambda: self._free.insert(0, gpu) if gpu is not None else None)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], give_back: Any) -> None:
        self._process, self._give_back = process, give_back

    def code(self) -> int | None:
        code = self._process.poll()
        if code is not None:
            self._give_back()
            self._give_back = lambda: None
        return code

    def cancel(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.code()


def _die_with_parent() -> None:
    """Linux: the process gets SIGKILL when the sweep is gone, however that ended."""
    if sys.platform == "linux":
        with suppress(OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Submitit:
    """Jobs of a cluster: SLURM's, or with `cluster="local"` processes here, as tests use.

    Args:
        logs: folder of submitit's files.
        settings: what `AutoExecutor.update_parameters` takes.

    Raises:
        RqatError: submitit is not installed, or does not know the cluster or a setting.
    """

    def __init__(self, logs: Path, places: int, cluster: str, settings: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise RqatError(
                f"--cluster {cluster}: submitit is not installed.", hint="Run: pip install 'rqat[slurm]'."
            ) from None
        self.logs, self.places = logs, places
        self._command = submitit.helpers.CommandFunction
        logs.mkdir(parents=True, exist_ok=True)
        try:
            self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
            self._executor.update_parameters(**{"gpus_per_node": 0 if cluster == "local" else 1, **settings})
        except (ValueError, RuntimeError, NameError, TypeError) as error:
            raise RqatError(
                f"--cluster {cluster}: {' '.join(str(error).split())[:300]}", hint="Check --cluster and `slurm:`."
            ) from error

    def start(self, name: str, command: Sequence[str]) -> Running:
        """See `Executor`."""
        self._executor.update_parameters(name=name[:60])
        return _Submitted(self._executor.submit(self._command(list(command), verbose=False)), self.logs / f"{name}.log")


class _Submitted:
    def __init__(self, job: Any, log: Path) -> None:
        self._job, self._log = job, log

    def code(self) -> int | None:
        if not self._job.done():
            return None
        error = self._job.exception()
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{self._job.stderr() or ''}\n{error or ''}\n".lstrip())
        return 0 if error is None else 1

    def cancel(self) -> None:
        self._job.cancel()
