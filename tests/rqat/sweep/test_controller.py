"""Which cell runs when: with commands that only pretend, and once for real, killed in the middle."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rqat.errors import RunError
from rqat.registry import Registry
from rqat.run_folder import MANIFEST, finished
from rqat.storage import append_json_line, read_json, write_json
from rqat.sweep import controller
from rqat.sweep.cells import Cell, StopKeys, Sweep, load_sweep
from rqat.sweep.controller import Controller, Folders, too_bad
from rqat.sweep.executors import Local
from rqat.sweep.shared import bring, pool
from tests.rqat.cli.test_commands import rqat
from tests.rqat.sweep.test_cells import RECIPE, written

KD, BASE, RTN, LAST = "02-train-kd", "03-evaluate-kl-bf16", "04-evaluate-kl-rtn", "05-evaluate-kl-kd"
WATCH = {"train.0.watch": {"task": "kl", "rows": "arith"}}
LR = {"train.0.lr": [1e-4, 1e-3, 1e-2]}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def finish(folder: Path, name: str, fingerprint: str) -> None:
    """Leaves a step as the pipeline does."""
    step = folder / name
    step.mkdir(parents=True)
    (step / "weights").write_text(fingerprint)
    write_json(step / MANIFEST, {"fingerprint": fingerprint, "step": name, "seconds": 1.0, "files": {}})


@dataclass
class Pretending:
    """Runs commands a step at a time: one whenever it is looked at.

    Attributes:
        done: every step that was done, with its cell, in order.
        fails: cells that fail at once.
        watched: the figure that a cell's training shows, at optimizer steps 10, 20, ...
        edited: what fingerprints end with that the commands find.
    """

    sweep: Sweep
    folders: Folders
    places: int = 1
    done: list[tuple[str, str]] = field(default_factory=list)
    started: list[tuple[str, str]] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    watched: dict[str, list[float]] = field(default_factory=dict)
    limit: int = 10**6
    edited: str = ""

    def start(self, name: str, command: Sequence[str]) -> Any:
        cell = next(cell for cell in self.sweep.cells if cell.name == name)
        until = command[command.index("--until") + 1] if "--until" in command else cell.plan.steps[-1].name
        self.started.append((name, until))
        return _Pretended(self, cell, until)


class _Pretended:
    def __init__(self, owner: Pretending, cell: Cell, until: str) -> None:
        self.owner, self.cell, self.until = owner, cell, until
        self.shown = 0

    def code(self) -> int | None:
        owner, cell = self.owner, self.cell
        if cell.name in owner.fails:
            return 2
        folder = owner.folders.cell(cell)
        own = finished(folder)
        for name, fingerprint in cell.prints.items():
            fingerprint += owner.edited
            if fingerprint not in own:
                if len(owner.done) >= owner.limit:
                    raise KeyboardInterrupt
                figures = owner.watched.get(cell.name, [])
                if name == KD and self.shown < len(figures):
                    partial = folder / f"{KD}.partial"
                    partial.mkdir(parents=True, exist_ok=True)
                    line = {"step": 10 * (self.shown + 1), "watch/kl": figures[self.shown]}
                    append_json_line(partial / "training.jsonl", line)
                    self.shown += 1
                    return None
                finish(folder, name, fingerprint)
                owner.done.append((cell.name, name))
                return None
            if name == self.until:
                break
        write_json(folder / "summary.json", {})
        return 0

    def cancel(self) -> None:
        pass


@pytest.fixture
def made(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(controller, "LOOK_S", 0)

    def make(places: int = 1, **sweep: Any) -> tuple[Controller, Pretending]:
        shown = WATCH | {"train.0.steps": 30}  # as many as a pretended training shows
        loaded = load_sweep(written(tmp_path, {"matrix": LR, "set": shown, **sweep}), registry)
        folders = Folders(tmp_path / "out")
        executor = Pretending(loaded, folders, places)
        return Controller(loaded, folders, executor, registry, lambda line: None), executor

    return make


def names(cells: Sequence[Cell]) -> list[str]:
    return [cell.name for cell in cells]


@pytest.mark.parametrize("places", [1, 2, 3])
def test_what_cells_share_is_done_once(made: Any, places: int) -> None:
    control, executor = made(places)
    control.run()
    first, second, third = names(control.sweep.cells)
    assert len(executor.done) == len(set(executor.done)) == 3 + 2 * 3
    by = {step: [cell for cell, name in executor.done if name == step] for step in ("01-quantize-rtn", BASE, RTN, KD)}
    assert by["01-quantize-rtn"] == [first]
    assert len(by[BASE]) == len(by[RTN]) == 1
    assert sorted(by[KD]) == sorted([first, second, third])
    assert {control.state(cell) for cell in control.sweep.cells} == {"done"}
    linked = [control.folders.cell(cell) for cell in control.sweep.cells]
    inodes = {
        (finished(folder)[control.sweep.cells[0].prints["01-quantize-rtn"]] / "weights").stat().st_ino
        for folder in linked
    }
    assert len(inodes) == 1


def test_side_by_side_trainings_run_together(made: Any) -> None:
    control, executor = made(3)
    control.run()
    order = [cell for cell, name in executor.done if name == KD]
    last = max(index for index, (_, name) in enumerate(executor.done) if name == KD)
    first_after = min(index for index, (_, name) in enumerate(executor.done) if name in (BASE, LAST))
    assert len(order) == 3
    assert last < first_after + 3  # nobody waited for a whole other cell


def test_interrupted_it_runs_only_what_is_missing(made: Any) -> None:
    control, executor = made(1)
    executor.limit = 4
    with pytest.raises(KeyboardInterrupt):
        control.run()
    before = list(executor.done)
    again, fresh = made(1)
    again.run()
    assert len(before) == 4
    assert not set(before) & set(fresh.done)
    assert len(before) + len(fresh.done) == 9
    third, idle = made(1)
    third.run()
    assert idle.started == []


def test_a_new_value_runs_that_cell_alone(made: Any) -> None:
    control, _ = made(1)
    control.run()
    more, executor = made(1, matrix={"train.0.lr": [1e-4, 1e-3, 1e-2, 1e-1]})
    more.run()
    assert executor.done == [("lr=0.1", KD), ("lr=0.1", LAST)]


def test_a_cell_that_fails_stops_no_other(made: Any) -> None:
    control, executor = made(1)
    first, *_ = names(control.sweep.cells)
    executor.fails.add(first)
    control.run()
    assert control.failed == {first: 2}
    assert [control.state(cell) for cell in control.sweep.cells] == ["failed", "done", "done"]
    again, repaired = made(1)
    again.run()
    assert repaired.done == [(first, KD), (first, LAST)]


def test_a_plugin_that_is_edited_meanwhile_ends_the_sweep(made: Any) -> None:
    """A cell's process reads the new source and makes other steps: the sweep would start it again and again."""
    controller, executor = made()
    executor.edited = "-edited"
    with pytest.raises(RunError, match="other steps than were planned") as told:
        controller.run()
    assert "Start the same command again" in told.value.hint
    assert [name for name, _ in executor.started] == ["lr=0.0001"]


def test_a_cell_that_is_far_worse_is_stopped_and_stays_so(made: Any) -> None:
    stop = {"after": 20, "factor": 2}
    control, executor = made(1, stop=stop)
    first, second, third = names(control.sweep.cells)
    executor.watched = {first: [1.0, 0.5, 0.4], second: [9.0, 1.1, 0.2], third: [1.0, 0.9, 0.1]}
    control.run()
    assert [control.state(cell) for cell in control.sweep.cells] == ["done", "stopped", "done"]
    told = read_json(control.folders.stopped)[second]
    assert (told["at"], told["kl"], told["best"]) == (20, 1.1, 0.5)
    assert (second, KD) not in executor.done

    again, idle = made(1, stop=stop)
    again.run()
    assert idle.started == []
    other, goes_on = made(1, stop=stop | {"factor": 3})
    goes_on.watched = executor.watched
    other.run()
    assert (second, KD) in goes_on.done


def test_when_a_value_is_too_bad() -> None:
    rule = StopKeys(after=20, factor=1.5)

    def found(mine: dict[int, float], other: dict[int, float]) -> Any:
        return too_bad("a", {"a": {"kd": mine}, "b": {"kd": other}, "c": {}}, rule)

    assert found({10: 9.0, 20: 1.5}, {10: 1.0, 20: 1.0}) is None
    assert found({20: 1.6}, {20: 1.0}) == ("kd", 20, 1.6, 1.0)
    assert found({20: 1.6}, {30: 1.0}) is None  # not at the same step
    assert found({30: float("nan")}, {30: 1.0})[1] == 30
    assert found({20: 1.0}, {20: float("nan")}) is None


def test_steps_are_linked_and_not_copied(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    finish(one, "01-calibrate", "aaa")
    prints = {"01-quantize": "zzz", "02-calibrate": "aaa"}
    assert bring(other, prints, pool([one])) == ["02-calibrate"]
    assert bring(other, prints, pool([one, other])) == []
    [there] = finished(other).values()
    assert (there / "weights").stat().st_ino == (one / "01-calibrate" / "weights").stat().st_ino


# ------------------------------------------------------------------------------------------------------ for real


SMALL = {
    **RECIPE,
    "train": [
        {**RECIPE["train"][0], "steps": 12, "save_every": 2, "watch": {"task": "kl", "rows": "arith", "every": 6}}
    ],
}


@pytest.mark.long
def test_killed_in_the_middle_only_what_is_missing_is_run(tmp_path: Path) -> None:
    file, out = written(tmp_path, {"matrix": {"train.0.lr": [1e-4, 1e-3]}}, SMALL), tmp_path / "out"
    words = [sys.executable, "-m", "rqat", "sweep", str(file), "-o", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    second = out / "cells" / "lr=0.001"
    while process.poll() is None and not (second / f"{KD}.partial").is_dir():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (second / f"{KD}.partial").is_dir(), (tmp_path / "log").read_text()
    time.sleep(1)
    before = {path: read_json(path)["started"] for path in out.glob(f"cells/*/*/{MANIFEST}")}
    assert len(before) >= 8
    result = rqat("sweep", file, "-o", out)
    assert result.exit_code == 0, result.stderr
    for path, started in before.items():
        assert read_json(path)["started"] == started
    manifests = {path.parent.name: path for path in second.glob(f"*/{MANIFEST}")}
    assert set(manifests) == {"01-quantize-rtn", KD, BASE, RTN, LAST}
    assert manifests["01-quantize-rtn"].stat().st_nlink == 2
    with (out / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["cell"] for row in rows] == ["lr=0.0001", "lr=0.001"]
    assert all(float(row["kl on arith.kd.kl"]) > 0 and float(row["watched.kd.kl"]) > 0 for row in rows)
    assert rows[0]["kl on arith.rtn.kl"] == rows[1]["kl on arith.rtn.kl"]
    assert "kl (kl on arith) over lr" in (out / "sweep.html").read_text()
    assert "Content-Security-Policy" in (out / "sweep.html").read_text()
    assert "0.001" in result.stdout

    again = rqat("sweep", file, "-o", out, "--json")
    assert "runs" not in again.stderr
    assert [row["state"] for row in json.loads(again.stdout)] == ["done", "done"]
    shown = rqat("sweep", file, "-o", out, "--plan")
    assert "0 are to be run" in shown.stdout


@pytest.mark.slow
def test_more_cells_than_gpus_share_them_and_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    executor = Local(tmp_path, 3, ["4", "7"])
    told = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS"]
    for name in "abc":
        running = executor.start(name, told)
    while running.code() is None:
        time.sleep(0.01)
    seen = [_settled(tmp_path / f"{name}.log") for name in "abc"]
    assert seen == ["4 5", "7 5", "4 5"]


def _settled(log: Path) -> str:
    """What a process printed, once it has."""
    for _ in range(500):
        if text := log.read_text().strip():
            return text
        time.sleep(0.01)
    raise AssertionError(f"nothing in {log}")


def test_jobs_of_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    recipe = RECIPE | {"train": []}
    file = written(tmp_path, {"matrix": {"scheme": ["w2g128", "w3g128"]}, "slurm": {"timeout_min": 5}}, recipe)
    result = rqat("sweep", file, "-o", tmp_path / "out", "--cluster", "local")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("done") == 2
    broken = written(tmp_path, {"matrix": {"scheme": ["w2g128"]}, "slurm": {"nonsense": 5}}, recipe)
    result = rqat("sweep", broken, "-o", tmp_path / "other", "--cluster", "local")
    assert result.exit_code == 2
    assert "nonsense" in result.stderr


def test_without_submitit_a_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    file = written(tmp_path, {"matrix": LR})
    result = rqat("sweep", file, "-o", tmp_path / "out", "--cluster", "slurm")
    assert result.exit_code == 2
    assert "submitit is not installed" in result.stderr
    assert "pip install 'rqat[slurm]'" in result.stderr


def test_the_plan_says_what_is_shared_and_what_it_costs(tmp_path: Path) -> None:
    file = written(tmp_path, {"matrix": LR, "stop": "kl", "set": WATCH})
    result = rqat("sweep", file, "-o", tmp_path / "out", "--plan")
    assert result.exit_code == 0, result.stderr
    assert "3 cells of 15 steps in all; 9 are different, 9 are to be run." in result.stdout
    assert "GB" in result.stdout
    cells = json.loads(rqat("sweep", file, "-o", tmp_path / "out", "--plan", "--json").stdout)
    assert cells[1]["steps"][BASE] == "from lr=0.0001"
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_of_cells_is_told_before_any_runs(tmp_path: Path) -> None:
    file = written(tmp_path, {"matrix": {"train.0.max_tokens": [256, 10**6]}})
    result = rqat("sweep", file, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "(cell max_tokens=1000000)" in result.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    result = rqat("sweep", written(tmp_path, {"matrix": LR}), "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds 'thesis.tex', which is no sweep's" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_processes_end_with_the_sweep(tmp_path: Path) -> None:

    child = os.fork()
    if child == 0:
        try:
            Local(tmp_path, 1).start("sleeper", ["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60"])
            time.sleep(60)
        finally:
            os._exit(0)
    pid = tmp_path / "pid"
    while not (pid.is_file() and pid.read_text().strip()):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid.read_text().strip()}/stat")
        if not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("it goes on without its sweep")
