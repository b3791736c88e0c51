"""docs/tutorial/own-model.md, its commands run as they are written, on a real model of 135 million parameters.

The model is made by a tool that stands beside the repository, from a package that carries its weights; a folder that is
there already is named by RQAT_SMOL.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "own-model"
TOOL = ROOT.parent / "shared" / "tools" / "real_models.py"


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a folder."""
    if there := os.environ.get("RQAT_SMOL"):
        return Path(there)
    if not TOOL.is_file():
        pytest.skip("there is no ../shared/tools/real_models.py, and RQAT_SMOL names no folder")
    folder = tmp_path_factory.mktemp("smol")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, TOOL, "get", "smol", folder]
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if made.returncode:
        pytest.skip(f"the model cannot be made here: {made.stderr.strip().splitlines()[-1:]}")
    return folder


def test_the_pieces_that_the_page_shows_are_all_of_the_script() -> None:
    page, script = (ROOT / "docs/tutorial/own-model.md").read_text(), (EXAMPLE / "run.sh").read_text()
    sections = [line.split("start:")[1].rstrip("]") for line in script.splitlines() if "[start:" in line]
    assert [f"own-model/run.sh:{name}" in page for name in sections] == [True] * len(sections)
    rows = [json.loads(line) for line in (EXAMPLE / "talks.jsonl").read_text().splitlines()]
    assert len(rows) == 48


@pytest.mark.long
def test_the_tutorial_runs_as_written(smol: Path, tmp_path: Path) -> None:
    """2 min 43 s of processor time on two cores of a Xeon, OMP_NUM_THREADS=1, 2026-11-30: GPTQ 47 s of it."""
    for file in ("mine.yaml", "talks.jsonl", "run.sh"):
        shutil.copyfile(EXAMPLE / file, tmp_path / file)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "rqat").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rqat "$@"\n')
    (commands / "rqat").chmod(0o755)
    environment = {**os.environ, "MODEL": str(smol), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    bash = str(shutil.which("bash"))
    done = subprocess.run([bash, "run.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout + done.stderr
    assert f"mine: {smol} at w3g64" in told
    assert "02-quantize-gptq" in told  # in the list of runs, while the run was stopped there
    assert "Done already: 01-calibrate, 02-quantize-gptq." in told
    assert "03-train-kd" in told
    lines = (tmp_path / "runs/mine/03-train-kd/training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for complaint in ("longer than max_tokens", "changed nothing"):
        assert complaint not in told
    assert (tmp_path / "runs/mine/report.html").is_file()
    loader = [sys.executable, ROOT / "docs/examples/load_in_transformers.py", tmp_path / "runs/mine/04-export/model"]
    loaded = subprocess.run(loader, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
