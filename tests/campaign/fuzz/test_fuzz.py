"""Whatever a file holds, reading it ends well or in one line; what was once found is tried again every day."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.fuzz import run
from tests.campaign.fuzz.commands import Commands
from tests.campaign.fuzz.kinds import Bench, Kind
from tests.campaign.fuzz.run import CORPUS, Search, inputs, try_one

INSTALL = "pip install -e '.[fuzz]'"

LIGHT = ("recipe", "set", "jsonl", "problems", "template", "manifest", "step", "results")
"""Kinds of which a hundred take a second or so."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def commands(bench: Bench) -> dict[str, Kind]:
    return Commands(bench).kinds()


def test_good_files_are_read_well(bench: Bench) -> None:
    """Else nothing behind what refuses them would be tried."""
    for name, kind in bench.kinds().items():
        if name in ("parquet", "quantization_config", "jsonl", "template"):
            continue  # reading these as they are needs more than is there, or is refused at a row
        data = kind.good if isinstance(kind.good, bytes) else kind.good.encode()
        assert try_one(kind, data) == ("valid", ""), name


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_mended(path: Path, bench: Bench, commands: dict[str, Kind]) -> None:
    verdict, trace = try_one({**bench.kinds(), **commands}[path.parent.name], path.read_bytes())
    assert verdict in ("valid", "refused"), trace


def waits(path: Path) -> None:
    time.sleep(9)


def computes(path: Path) -> None:
    while path.is_file():
        pass


@pytest.mark.parametrize("reads", [waits, computes])
def test_a_reading_that_waits_or_computes_for_long_is_told(reads: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SECONDS", 0.05)
    monkeypatch.setattr(run, "WAITED", 0.5)
    started = time.process_time()
    verdict, trace = try_one(Kind("", lambda text, rng: b"", reads), b"")
    assert verdict == "hung"
    assert "Hung" in trace
    assert time.process_time() - started < 0.4
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL


@pytest.mark.parametrize("name", LIGHT)
def test_a_few_changed_files_of_every_light_kind(name: str, bench: Bench) -> None:
    kind = bench.kinds()[name]
    for own, data in inputs(name, kind, 0, 20):
        verdict, trace = try_one(kind, data)
        assert verdict in ("valid", "refused"), f"{own}\n{trace}"


@pytest.mark.parametrize("name", LIGHT)
def test_a_few_files_made_anew(name: str, bench: Bench) -> None:
    pytest.importorskip("hypothesis", reason=f"hypothesis is not installed: {INSTALL}")
    from tests.campaign.fuzz.structured import each, strategies

    kind, verdicts = bench.kinds()[name], Counter[str]()

    def take(data: bytes) -> None:
        verdict, trace = try_one(kind, data)
        assert verdict in ("valid", "refused"), f"{data!r}\n{trace}"
        verdicts[verdict] += 1

    each(strategies(str(bench.model))[name], 0, 20, take)
    assert sum(verdicts.values()) >= 10


def test_changes_made_anew_are_taken_and_refused_alike(bench: Bench) -> None:
    """A `--set` that is refused where it is read says nothing of what a plan makes of it, nor one that is taken of what
    becomes of a wrong one. The large sections of the good recipe are all changed by some that are taken.
    """
    pytest.importorskip("hypothesis", reason=f"hypothesis is not installed: {INSTALL}")
    from tests.campaign.fuzz.structured import each, strategies

    kind, verdicts, taken = bench.kinds()["set"], Counter[str](), Counter[str]()

    def take(data: bytes) -> None:
        verdict, trace = try_one(kind, data)
        assert verdict in ("valid", "refused"), f"{data!r}\n{trace}"
        verdicts[verdict] += 1
        if verdict == "valid":
            taken[data.decode(errors="replace").partition(".")[0]] += 1

    each(strategies(str(bench.model))["set"], 0, 150, take)
    assert verdicts["valid"] >= 150 / 5
    assert verdicts["refused"] >= 150 / 5
    assert {"calibration", "quantize", "train", "evaluate"} <= taken.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jsonl", "step"])
def test_a_few_bytes_changed_by_what_they_reach(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason=f"atheris is not installed: {INSTALL}")
    search = Search(0, 100, keep=False)
    search.guided(name)
    assert not search.found
    assert sum(row.counts["inputs"] for row in search.rows) >= 100


@pytest.mark.slow
def test_commands_read_good_files_well(commands: dict[str, Kind]) -> None:
    for name, kind in commands.items():
        data = kind.good if isinstance(kind.good, bytes) else kind.good.encode()
        assert try_one(kind, data) == ("valid", ""), name


@pytest.mark.campaign
def test_ten_thousand_files() -> None:
    """More where hypothesis and atheris are installed."""
    command = [sys.executable, "-m", "tests.campaign.fuzz.run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
