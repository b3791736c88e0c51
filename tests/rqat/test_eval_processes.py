"""`rqat eval` in several processes, as a user starts it: ended in every way it goes on, to the bytes of one process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.campaign.several import is_there, workers_of

TIMEOUT_S = 180


def command(out: Path, processes: int) -> list[str]:
    asked = ["--limit", "64", "--batch", "4", "--set", "temperature=0.7", "--set", "seeds=[1, 2]"]
    rqat = [sys.executable, "-P", "-m", "rqat", "eval", "arith", "builtin:tiny-reasoner"]
    return [*rqat, *asked, "--set", "max_new_tokens=64", "--processes", str(processes), "-o", str(out)]


def batches(out: Path) -> dict[str, int]:
    """Finished batches of every process, by file."""
    files = out.with_name(f".{out.name}.rqat").glob("*.partial/.resume/samples*.jsonl")
    return {file.name: file.read_text().count("\n") for file in sorted(files)}


def ended(out: Path, processes: int, by: str) -> tuple[int, str]:
    """Starts it and ends it once every process has finished a batch more; its exit code, and what it has printed."""
    before = batches(out)
    with subprocess.Popen(command(out, processes), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + TIMEOUT_S
        names = ["samples.jsonl", *(f"samples-{rank}.jsonl" for rank in range(1, processes))]
        while not all(batches(out).get(name, 0) > before.get(name, 0) for name in names):
            assert running.poll() is None, running.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = workers_of(running.pid)
        assert len(workers) == processes
        if by == "the system kills one":
            os.kill(workers[-1], signal.SIGKILL)
        else:
            running.send_signal(signal.SIGINT if by == "Ctrl-C" else signal.SIGKILL)
        _, said = running.communicate(timeout=TIMEOUT_S)
    gone = time.monotonic() + 10
    while any(map(is_there, workers)):
        assert time.monotonic() < gone, "a worker was left behind"
        time.sleep(0.02)
    assert not out.exists()
    return running.returncode, said


@pytest.mark.long
def test_ended_in_every_way_it_goes_on_in_any_number(tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert subprocess.run(command(alone, 1), capture_output=True, timeout=TIMEOUT_S).returncode == 0
    code, said = ended(out, 2, "the system kills one")
    assert code == 2
    assert re.search(r"\nError: process 1 of 2 was killed\.\nHint: .*, or batch\. The same command resumes ", said)
    assert "raceback" not in said
    code, said = ended(out, 3, "Ctrl-C")
    assert code == 130
    assert said.endswith("\nInterrupted. The same command resumes from here.\n")
    assert ended(out, 2, "nobody is left")[0] == -signal.SIGKILL
    kept = sum(batches(out).values())
    assert 2 + 3 + 2 <= kept < 32
    done = subprocess.run(command(out, 2), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert (out / "samples.jsonl").read_bytes() == (alone / "samples.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "out"]
