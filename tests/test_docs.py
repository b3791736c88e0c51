"""The docs say what the code does: generated pages are up to date, snippets run, links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def environment() -> dict[str, str]:
    """This environment, with the repository's packages and an `rqat` command on the path."""
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "plugins", "kernels"))
    return {**os.environ, "PYTHONPATH": paths}


def test_reference_pages_are_up_to_date():
    result = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, env=environment()
    )
    assert result.returncode == 0, f"run `python docs/generate.py`:\n{result.stdout}{result.stderr}"


def test_every_hook_is_documented():
    from rqat import hookspecs

    page = (DOCS / "reference" / "hooks.md").read_text()
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert len(hooks) >= 6
    assert [name for name in hooks if f"## {name}" not in page] == []


def test_every_link_between_pages_leads_somewhere():
    broken = []
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+\.(?:md|yaml|py))", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


@pytest.mark.parametrize("page", ["compatibility", "security"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "explain" / f"{page}.md").read_text())
    assert len(named) >= 10
    missing = [f"{path}::{test}" for path, test in named if f"def {test}(" not in _source(ROOT / path)]
    assert missing == []


def _source(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def test_every_included_file_exists():
    included = [
        (page.name, "".join(name).partition(":")[0])
        for page in DOCS.rglob("*.md")
        for name in re.findall(r'--8<-- "([^"]+)"|<!-- file: (\S+) -->', page.read_text())
    ]
    assert len(included) >= 5
    assert [pair for pair in included if not (ROOT / pair[1]).is_file()] == []


@pytest.mark.long
def test_first_quantization_runs(tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    rqat = commands / "rqat"
    rqat.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rqat "$@"\n')
    rqat.chmod(0o755)
    env = environment()
    env["PATH"] = f"{commands}{os.pathsep}{env['PATH']}"
    script = DOCS / "examples" / "first-quantization.sh"
    result = subprocess.run([shutil.which("bash"), script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "tiny-gptq" / "config.json").is_file()

    load = [sys.executable, DOCS / "examples" / "load_in_transformers.py", "tiny-gptq"]
    shown = subprocess.run(load, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert "Mia starts with 20 figs" in shown.stdout

    packed = [sys.executable, DOCS / "examples" / "run_packed.py", "tiny-gptq"]
    written = subprocess.run(packed, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert written.returncode == 0, written.stderr[-2000:]
    assert "\\boxed{" in written.stdout


@pytest.mark.slow
def test_from_python_runs_and_is_short(tmp_path):
    script = DOCS / "examples" / "from_python.py"
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith('"""')]
    assert len(lines) <= 20
    result = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    accuracy, reload = result.stdout.split(maxsplit=1)
    assert float(accuracy) > 0.5
    assert reload.startswith("transformers ")
    assert (tmp_path / "trained" / "quantized.safetensors").is_file()
    assert (tmp_path / "served" / "config.json").is_file()


@pytest.mark.long
def test_the_comparison_of_ends_runs(tmp_path: Path) -> None:
    """On the tiny reasoner, with sums for text: a smaller file for each scheme, and what that costs."""
    text = "\n\n".join(f"Mia has {n} figs. A friend takes {n % 7}.\n{n}-{n % 7}={n - n % 7}" for n in range(1000))
    (tmp_path / "sums.txt").write_text(text)
    script, files = DOCS / "examples" / "compare_ends.py", ["sums.txt"] * 3
    model = ROOT / "rqat" / "assets" / "tiny-reasoner"
    command = [sys.executable, script, model, "w3g128", *files, "none", "rtn:w4g128", "w4g128"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line for line in result.stdout.splitlines() if "KL" in line]
    assert len(lines) == 3
    sizes = [float(line.split()[1]) for line in lines]
    assert sizes[0] > sizes[1] == sizes[2]
