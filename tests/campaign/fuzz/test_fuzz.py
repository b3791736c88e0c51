"""Whatever a file holds, reading it ends well or in one line; what was once found is tried again every day."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.fuzz.commands import Commands
from tests.campaign.fuzz.kinds import Bench, Kind
from tests.campaign.fuzz.run import CORPUS, inputs, try_one

LIGHT = ("recipe", "set", "jsonl", "problems", "template", "manifest", "step", "results")
"""Kinds of which a hundred take a second or so."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def kinds(bench: Bench) -> dict[str, Kind]:
    return {**bench.kinds(), **Commands(bench).kinds()}


def test_good_files_are_read_well(bench: Bench) -> None:
    """Else nothing behind what refuses them would be tried."""
    for name, kind in bench.kinds().items():
        if name in ("parquet", "quantization_config", "jsonl", "template"):
            continue  # reading these as they are needs more than is there, or is refused at a row
        data = kind.good if isinstance(kind.good, bytes) else kind.good.encode()
        assert try_one(kind, data) == ("valid", ""), name


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_mended(path: Path, kinds: dict[str, Kind]) -> None:
    verdict, trace = try_one(kinds[path.parent.name], path.read_bytes())
    assert verdict in ("valid", "refused"), trace


@pytest.mark.parametrize("name", LIGHT)
def test_a_few_changed_files_of_every_light_kind(name: str, bench: Bench) -> None:
    kind = bench.kinds()[name]
    for own, data in inputs(name, kind, 0, 20):
        verdict, trace = try_one(kind, data)
        assert verdict in ("valid", "refused"), f"{own}\n{trace}"


@pytest.mark.campaign
def test_ten_thousand_changed_files() -> None:
    command = [sys.executable, "-m", "tests.campaign.fuzz.run", "--each", "750"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
