"""The example plugin installs as any other distribution does, is found by its entry point, and passes its tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HELLO = ROOT / "docs" / "examples" / "rqat-hello"


def run(*command: str, cwd: Path, site: Path) -> str:
    paths = [site, ROOT, ROOT / "plugins", ROOT / "kernels"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rqat-hello installed into it, built from a copy so that nothing is left in the source tree."""
    pytest.importorskip("hatchling")
    source = tmp_path_factory.mktemp("source") / "rqat-hello"
    shutil.copytree(HELLO, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("site")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run("-m", "pip", "install", *offline, "--target", str(target), str(source), cwd=source, site=target)
    return target


def test_it_is_found_by_its_entry_point(site: Path, tmp_path: Path):
    code = (
        "from rqat.registry import Registry; r = Registry.discover(); c = r.card('quantizer', 'hello')\n"
        "assert not r.broken, r.broken\nprint(c.owner, c.version, c.module, type(r.make(c, c.options())).__name__)"
    )
    assert run("-c", code, cwd=tmp_path, site=site).split() == ["rqat-hello", "0.1.0", "rqat_hello", "PercentileClip"]


def test_its_own_tests_pass(site: Path, tmp_path: Path):
    shutil.copytree(HELLO / "tests", tmp_path / "tests")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path, site=site)


def test_a_new_plugin_installs_and_passes_its_suite(site: Path, tmp_path: Path):
    """The three commands that `rqat plugins new` prints."""
    code = "from rqat.registry import Registry; from rqat.scaffold import new_plugin\n"
    code += "new_plugin(Registry.discover(), 'rqat-acme-quant', 'gptq')"
    run("-c", code, cwd=tmp_path, site=site)
    folder, target = tmp_path / "rqat-acme-quant", tmp_path / "target"
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run("-m", "pip", "install", *offline, "--target", str(target), ".", cwd=folder, site=site)
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, site=target)
