"""The campaign's tools: the preloaded library, the server that runs commands, a recipe, its runs.

For every point the command is started anew and does what is left of the step in question; then the folder is compared,
file by file. Left out is only what could but repeat itself: imports, which a fork finds done; the steps before, which
lie in a copy of the folder; the steps after, which start from what has just been found equal, byte for byte; and what a
change has left as it was.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny import save_tiny

from .compared import before_its_end, contents, state_of

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

SAVE_EVERY = 2

EARLIER, SENDINGS = 0.8, 6
"""A signal that came when all was over is sent at this share of the time before, and so often in all: the last comes
at a quarter of the time that was drawn, by when no command is over."""

LOCKING = 2
"""Writes of a command to the lock of its folder, before all others."""

GRPO = """\
  - objective: grpo
    data: arith
    task: arith
    generations: 2
    max_completion_tokens: 8
    gate: {{action: warn, prompts: 2, samples: 2}}
    steps: 3
    batch: 4
    max_tokens: 160
    save_every: {every}
"""
"""Of the two recipes below; its rates are their own."""

RECIPE = (
    """
name: small
model: {model}
scheme: w2g32
calibration: {{source: own-rows, prompts: [{{source: arith}}], samples: 4, tokens: 48}}
quantize: gptq
train:
  - {{objective: kd, data: arith, steps: 5, batch: 2, max_tokens: 160, lr: 1e-3, scale_lr: 1e-3, save_every: {every}}}
"""
    + GRPO
    + """\
    lr: 1e-3
export: compressed-tensors
evaluate:
  - {{task: arith, problems: 4, limit: 4, max_new_tokens: 8, batch: 2}}
"""
)

SCALES = (
    """
name: small
model: {model}
scheme: w4g32
budget: {{size: 9bits, widths: [2, 4, 8], ends: [16], samples: 2}}
calibration: {{source: arith, samples: 4, tokens: 48}}
quantize: gptq
train:
  - {{objective: kd, data: arith, steps: 5, batch: 2, max_tokens: 160, lr: null, scale_lr: 1e-2, save_every: {every}}}
"""
    + GRPO
    + """\
    lr: null
    scale_lr: 1e-2
    kd_weight: 1
export: rqat
"""
)
"""Widths within a budget, and scales that are trained alone."""

START = """
name: small
model: {model}
scheme: w2g32
start: {start}
evaluate:
  - {{task: arith, problems: 2, limit: 2, max_new_tokens: 8, batch: 2}}
"""
"""What begins with the distilled model of the recipe above."""


def compiled(folder: Path) -> Path:
    """The preloaded library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None
    library = folder / "changes.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "changes.c", "-ldl", "-lpthread"], check=True
    )
    return library


class Server:
    """`server.py` in a process of its own."""

    def __init__(self, library: Path) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in (".", "plugins", "kernels"))
        environment = {**os.environ, "PYTHONPATH": paths, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"}
        command = [sys.executable, "-m", "tests.campaign.server"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ready(self) -> Server:
        """Itself, when it has imported everything."""
        assert self._answer() == {"ready": True}
        return self

    def run(self, **order: Any) -> dict[str, Any]:
        """See `server.py`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError(f"the server ended with {self._process.wait()}")


@dataclass
class Outcome:
    """What a row of the campaign's table tells.

    Attributes:
        lost: points that were not tried because they are the same as one that went wrong.
        problems: what went wrong, by point.
    """

    name: str
    tried: int = 0
    lost: int = 0
    repeated: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lost = self.lost + len({problem.partition(":")[0] for problem in self.problems})
        return f"| {self.name} | {self.tried} | {self.tried - lost} | {self.repeated} | {self.seconds:.0f} |"


HEAD = "| what | tried | survived | updates repeated at most | seconds |\n|---|---|---|---|---|"


class Campaign:
    """Runs of one recipe, interrupted in every way, against one that was left alone.

    Args:
        folder: to work in; made.
        recipe: of the runs; `{model}` in it is a model in `folder`.
        servers: that run commands, side by side.

    Attributes:
        cpu_s: seconds of a processor that a run takes.
    """

    def __init__(self, folder: Path, recipe: str, servers: list[Server], **values: Any) -> None:
        folder.mkdir()
        self.folder, self.servers = folder, servers
        self._idle: queue.Queue[Server] = queue.Queue()
        for server in servers:
            self._idle.put(server)
        self._together = ThreadPoolExecutor(len(servers))
        self._numbers = itertools.count()
        self.recipe = folder / "small.yaml"
        save_tiny(folder / "model", hidden=32, layers=2)
        self.recipe.write_text(recipe.format(model=folder / "model", every=SAVE_EVERY, **values))
        self.points: list[int] = []
        self.cpu_s = 0.0
        self._expected: dict[int, dict[str, Any]] = {}

    def command(self, place: Path, until: str = "", **order: Any) -> dict[str, Any]:
        """The one command of the campaign, in `place/run`; adds `output` and `notes` to the server's answer.

        Args:
            until: name of the last step to do; "" is all.
        """
        number = next(self._numbers)
        log, notes = (self.folder / f"{what}-{number}" for what in ("log", "notes"))
        argv = ["qat", "--recipe", str(self.recipe), "-o", str(place / "run"), "--offline"]
        argv += ["--plugin", str(HERE / "own_rows.py"), *(["--until", until] if until else [])]
        server = self._idle.get()
        answer = server.run(argv=argv, folder=str(place / "run"), log=str(log), notes=str(notes), **order)
        self._idle.put(server)
        output, lines = log.read_text(errors="replace"), notes.read_text().splitlines() if notes.exists() else []
        log.unlink()
        notes.unlink(missing_ok=True)
        return {**answer, "output": output, "notes": lines}

    def leave_alone(self) -> None:
        """The run that all others are compared with, with a copy of its folder after every change.

        Two before it on every server: one so that it has imported what a command needs, one to see what that takes.
        """
        self.cpu_s = min(self._together.map(self._warm, range(len(self.servers))))
        place, copies = self.folder / "whole", self.folder / "copies"
        place.mkdir()
        copies.mkdir()
        done = self.command(place, copies=str(copies))
        assert done["code"] == 0, done["output"]
        self.notes, self.points = done["notes"], done["points"]
        self.expected = contents(place / "run")

    def _warm(self, number: int) -> float:
        took = 0.0
        for turn in range(2):
            place = self.folder / f"first-{number}-{turn}"
            place.mkdir()
            took = float(self.command(place)["cpu_s"])
            shutil.rmtree(place)
        return took

    def resumed(self, place: Path, before: list[str], outcome: Outcome, what: str, *, step: int | None = None) -> None:
        """Gives the command again and compares; what is wrong goes into `outcome`.

        Args:
            before: notes of the run that was interrupted.
            step: number of the last step to do and to compare: the folder is then as it was there in the run that was
                left alone, and what follows is what followed. None does all.
        """
        until, expected = self._up_to(step)
        finished = {path.name for path in (place / "run").glob("*") if (path / "manifest.json").is_file()}
        done = self.command(place, until)
        outcome.tried += 1
        if done["code"]:
            outcome.problems.append(f"{what}: resumed with exit code {done['code']}: {done['output'][-600:]}")
            return
        found = before_its_end(contents(place / "run")) if until else contents(place / "run")
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                there = (
                    "differs"
                    if name in found and name in expected
                    else "is left over"
                    if name in found
                    else "is missing"
                )
                outcome.problems.append(f"{what}: {name} {there}")
        again = finished & {note.split()[1] for note in done["notes"] if note.startswith("step")}
        outcome.problems += [f"{what}: {name} was finished and is done again" for name in again]
        repeated = [note for note in done["notes"] if note.startswith("update") and note in before]
        for step in {note.split()[1] for note in repeated}:
            count = sum(note.split()[1] == step for note in repeated)
            outcome.repeated = max(outcome.repeated, count)
            if count > SAVE_EVERY:
                outcome.problems.append(f"{what}: {count} updates of {step} are repeated")

    def crash(self, numbers: list[int]) -> Outcome:
        """A process that ends after a change: the folder as it was then, and the same command.

        A change that leaves the folder as it was (an fsync, the close of a file that is written already) is as good as
        the one before: of such a series the last is tried, by when most had been done that could be repeated.
        """
        chosen, alike = set(numbers), dict[int, int]()
        copies = [self.folder / "copies" / f"{number:04}" for number in range(1, len(self.points) + 1)]
        before, series = "", list[int]()
        for number, copy in enumerate(copies, 1):
            state = state_of(copy)
            if state != before:
                series = []
            before = state
            if number in chosen:
                alike.pop(series[-1] if series else 0, None)
                series.append(number)
                alike[number] = len(series)

        def try_one(number: int, outcome: Outcome) -> None:
            place = self.folder / f"crashed-{number}"
            shutil.copytree(copies[number - 1], place)
            before = self.notes[: self.points[number - 1]]
            self.resumed(place, before, outcome, f"change {number}", step=_step_at(before))
            outcome.tried += alike[number] - 1
            outcome.lost += (alike[number] - 1) * any(said.startswith(f"change {number}:") for said in outcome.problems)
            shutil.rmtree(place)

        return self._each("killed after a change of the file system", sorted(alike), try_one)

    def refusable(self, code: int) -> list[tuple[int, int]]:
        """All writes that a disk can refuse in this way: of which step, and which since the command was given.

        Each step has its own command, which finds those before it finished: the other writes are the same.
        """
        place = self.folder / f"counted-{code}"
        place.mkdir()
        done = self.command(place, fail_from=1 << 30, fail_code=code)
        shutil.rmtree(place)
        begun = [int(note.split()[2]) for note in done["notes"] if note.startswith("step")]
        ends = [*begun[1:], int(done["writes"])]
        points = [(0, number) for number in range(1, ends[0] + 1)]
        for step, (start, end) in enumerate(zip(begun[1:], ends[1:], strict=True), 1):
            points += [(step, number) for number in range(LOCKING + 1, begun[0] + end - start + 1)]
        return points

    def before_step(self, number: int) -> tuple[Path, list[str]]:
        """The folder as it was before a step of the run that was left alone, and the notes until then."""
        begun = [index for index, note in enumerate(self.notes) if note.startswith("step")]
        last = max((at for at, told in enumerate(self.points, 1) if told <= begun[number]), default=0)
        return self.folder / "copies" / f"{last:04}", self.notes[: begun[number]]

    def _up_to(self, number: int | None) -> tuple[str, dict[str, Any]]:
        """Name of a step, unless it is the last, and what the folder holds of steps when it is done."""
        begun = [note.split()[1] for note in self.notes if note.startswith("step")]
        if number is None or number + 1 >= len(begun):
            return "", self.expected
        if number not in self._expected:
            copy, _ = self.before_step(number + 1)
            self._expected[number] = before_its_end(contents(copy / "run"))
        return begun[number], self._expected[number]

    def full_disk(self, points: Sequence[tuple[int, int]], code: int, name: str) -> Outcome:
        """A disk that refuses all writes from one on; then there is room again."""

        def try_one(point: tuple[int, int], outcome: Outcome) -> None:
            step, number = point
            place = self.folder / f"full-{code}-{step}-{number}"
            copy, before = self.before_step(step)
            if step:
                shutil.copytree(copy, place)
            else:
                place.mkdir()
            done = self.command(place, fail_from=number, fail_code=code)
            what = f"write {number} of step {step}"
            errors = [line for line in done["output"].splitlines() if line.startswith("Error: ")]
            if done["code"] != 3 or len(errors) != 1 or "Traceback" in done["output"]:
                outcome.problems.append(f"{what}: exit code {done['code']}: {done['output'][-1500:]}")
            self.resumed(place, before + done["notes"], outcome, what, step=step)
            shutil.rmtree(place)

        return self._each(f"{name} from a write on", points, try_one)

    def signalled(self, moments: list[tuple[int, float]]) -> Outcome:
        """A signal at some moment, in seconds of a processor after the start; see `cpu_s`.

        A command that is over by then, since no two take the same, is given again and gets its signal earlier. A signal
        that ends none of these commands is ignored: that is a problem, and later points do not wait for it again.
        """
        ignored: set[int] = set()

        def try_one(moment: tuple[int, float], outcome: Outcome) -> None:
            sent, after_s = moment
            place = self.folder / f"signal-{next(self._numbers)}"
            done, after_s = (None, after_s) if sent in ignored else self._sent(place, sent, after_s)
            what = f"signal {sent} after {after_s:.2f} s"
            if done is None:
                ignored.add(sent)
                outcome.tried += 1
                outcome.problems.append(f"{what}: it ends no command, however early; does the process ignore it?")
                return
            if done["code"] not in (128 + sent, -sent) or "Traceback" in done["output"]:
                outcome.problems.append(f"{what}: exit code {done['code']}: {done['output'][-1500:]}")
            self.resumed(place, done["notes"], outcome, what, step=_step_at(done["notes"]))
            shutil.rmtree(place)

        return self._each("a signal at a random moment", moments, try_one)

    def _sent(self, place: Path, sent: int, after_s: float) -> tuple[dict[str, Any] | None, float]:
        """What a command answers that a signal has ended, in `place`, and when that came; None where none ended one."""
        for time_s in (after_s * EARLIER**number for number in range(SENDINGS)):
            place.mkdir()
            done = self.command(place, signal=sent, after_s=time_s)
            if done["code"]:
                return done, time_s
            shutil.rmtree(place)
        return None, time_s

    def _each(self, name: str, points: Sequence[Any], try_one: Callable[[Any, Outcome], None]) -> Outcome:
        """Tries every point, as many at once as there are servers."""
        outcome, began, told = Outcome(name), time.monotonic(), 0
        tried = [self._together.submit(try_one, point, outcome) for point in points]
        try:
            for number, one in enumerate(tried, 1):
                one.result()
                outcome.seconds = time.monotonic() - began
                if number % 20 == 0 or len(outcome.problems) > told:  # so that a campaign that is cut short has told
                    print(outcome, *outcome.problems[told:], sep="\n", flush=True)
                    told = len(outcome.problems)
        finally:
            for one in tried:
                one.cancel()
        return outcome


def _step_at(notes: Sequence[str]) -> int:
    """Number of the step that notes end with; the first where none has begun."""
    return max(0, sum(note.startswith("step") for note in notes) - 1)
