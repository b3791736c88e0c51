"""A run whose training is done by two processes, of which one is killed, or the one that started them.

Real processes, which import all they need: each point takes a quarter of a minute and more, so the moments are chosen
at random. Everything here is one training; what else a run does is finished before and copied.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rqat.storage import read_json_lines
from tests.tiny import save_tiny

from .compared import contents
from .harness import ROOT, SAVE_EVERY, Outcome

RECIPE = """
name: two
model: {model}
scheme: w2g32
calibration: {{source: arith, samples: 4, tokens: 48}}
quantize: gptq
train: [{{{training}}}]
export: null
evaluate: []
compare: []
"""

TRAINING = {
    "kd": "objective: kd, data: arith, steps: 6, batch: 2, max_tokens: 160, lr: 1e-3, scale_lr: 1e-3",
    "grpo": "objective: grpo, data: arith, task: arith, generations: 2, max_completion_tokens: 8, steps: 6, batch: 4, "
    "max_tokens: 160, lr: 1e-3, gate: {action: warn, prompts: 2, samples: 2}",
}

PATIENCE_S = 300
"""Longest that a command takes, on a machine that does much else."""

GONE_S = 30
"""Longest that workers take to end when another, or their parent, is gone."""


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # any process may end meanwhile
            started_by = int(status.read_text().rpartition(")")[2].split()[1])
            if started_by == parent and b"rqat.worker" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return sorted(found)


def is_there(process: int) -> bool:
    """Whether a process is at work: one that has ended and waits to be asked for its exit code is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(frozen=True)
class Moment:
    """When somebody is killed, and who.

    Attributes:
        rank: of the worker; None is the parent.
        step: optimizer steps that have been done by then; 0 is as soon as there are workers.
        after_s: seconds later.
    """

    rank: int | None
    step: int
    after_s: float

    def __str__(self) -> str:
        who = "the parent" if self.rank is None else f"process {self.rank} of 2"
        return f"{who} {self.after_s:.2f} s after step {self.step}"


def moments(seed: int, count: int, *, parent: bool) -> list[Moment]:
    """Random ones: of importing, of the first steps and of the last, of saving and of publishing."""
    chance = random.Random(f"{seed} {parent}")
    return [
        Moment(None if parent else chance.randrange(2), chance.randrange(7), chance.uniform(0, 0.4))
        for _ in range(count)
    ]


class Two:
    """Runs whose training is done by two processes, against one that was left alone.

    Args:
        folder: to work in; made.
        objective: what they train for.
    """

    def __init__(self, folder: Path, objective: str) -> None:
        folder.mkdir()
        self.folder, self.objective = folder, objective
        self.recipe = folder / "two.yaml"
        model = save_tiny(folder / "model", hidden=32, layers=2)
        training = f"{TRAINING[objective]}, save_every: {SAVE_EVERY}"
        self.recipe.write_text(RECIPE.format(model=model, training=training))
        whole = self._place("whole")
        code, said = self._ended(self._start(whole), whole)
        assert code == 0, said
        self.expected = contents(whole / "run")
        self.before = self._place("before")
        shutil.copytree(whole / "run", self.before / "run")
        [trained] = (self.before / "run").glob(f"*-train-{objective}")
        shutil.rmtree(trained)

    def killed(self, name: str, chosen: list[Moment]) -> Outcome:
        """Kills at every moment, and gives the same command again."""
        outcome, began = Outcome(f"{name}, {self.objective}"), time.monotonic()
        for number, moment in enumerate(chosen):
            place = self._place(f"{number}-{'parent' if moment.rank is None else 'worker'}")
            shutil.copytree(self.before / "run", place / "run")
            wrong = [*self._kill(place, moment)]
            repeated = self._resume(place, wrong)
            outcome.problems += [f"{moment}: {said}" for said in wrong]
            outcome.repeated = max(outcome.repeated, repeated)
            outcome.tried, outcome.seconds = outcome.tried + 1, time.monotonic() - began
            print(outcome, moment, *wrong, sep="\n", flush=True)
            shutil.rmtree(place)
        return outcome

    def _kill(self, place: Path, moment: Moment) -> Iterator[str]:
        """Starts a run and kills one of its processes; what is wrong then."""
        parent = self._start(place)
        workers = self._wait_for(parent, place, moment)
        victim = parent.pid if moment.rank is None else workers[moment.rank]
        with suppress(ProcessLookupError):  # it was over before
            os.kill(victim, signal.SIGKILL)
        code, said = self._ended(parent, place)
        deadline = time.monotonic() + GONE_S
        while any(map(is_there, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for worker in filter(is_there, workers):
            yield f"process {worker} is still there"
            os.kill(worker, signal.SIGKILL)
        told = re.search(r"^Error: process \d of 2 was killed\.$", said, re.MULTILINE)
        expected = code == -signal.SIGKILL if moment.rank is None else told
        if "Traceback" in said or not (expected or code == 0):
            yield f"exit code {code}: {said[-1500:]}"
        yield from self._left_over(place)

    def _resume(self, place: Path, wrong: list[str]) -> int:
        """Gives the command again and compares; how many updates it has repeated."""
        steps = self._steps(place)
        code, said = self._ended(self._start(place), place)
        if code:
            wrong.append(f"resumed with exit code {code}: {said[-1500:]}")
        found = contents(place / "run")
        for name in sorted({*found, *self.expected}):
            if found.get(name) != self.expected.get(name):
                wrong.append(f"{name} is {'left over' if name not in self.expected else 'missing or other'}")
        wrong += self._left_over(place)
        resumed = re.search(r"resumes after step (\d+)", said)
        repeated = steps - int(resumed[1]) if resumed else steps
        if repeated > SAVE_EVERY:
            wrong.append(f"{repeated} updates are repeated")
        return repeated

    def _wait_for(self, parent: subprocess.Popen[bytes], place: Path, moment: Moment) -> list[int]:
        """The workers, when the moment has come or the training is over."""
        workers: list[int] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(workers) < 2 or (all(map(is_there, workers)) and self._steps(place) < moment.step):
            workers = workers if len(workers) == 2 else workers_of(parent.pid)
            assert parent.poll() is None or len(workers) == 2, (place / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moment.after_s)
        return workers

    def _steps(self, place: Path) -> int:
        """Optimizer steps that an unfinished training has logged; 0 where it is finished."""
        logs = (place / "run").glob("*-train-*.partial/training.jsonl")
        return max((int(line.get("step", 0)) for log in logs for line in read_json_lines(log)), default=0)

    def _place(self, name: str) -> Path:
        place = self.folder / name
        (place / "temporary").mkdir(parents=True)
        return place

    def _start(self, place: Path) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(str(ROOT / name) for name in (".", "plugins", "kernels"))
        environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(place / "temporary"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "rqat", "-v", "qat", "--recipe", str(self.recipe), "--processes", "2"]
        with (place / "log").open("wb") as log:
            return subprocess.Popen(
                [*command, "-o", str(place / "run"), "--offline"], env=environment, stdout=log, stderr=log
            )

    def _ended(self, parent: subprocess.Popen[bytes], place: Path) -> tuple[int, str]:
        """Exit code, and what was printed."""
        code = parent.wait(PATIENCE_S)
        return code, (place / "log").read_text(errors="replace")

    def _left_over(self, place: Path) -> Iterator[str]:
        """What lies among temporary files."""
        yield from (f"{path.name} is left over among temporary files" for path in (place / "temporary").iterdir())
