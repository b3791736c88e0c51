"""The example plugin, and one made by `rqat plugins new`, install as any distribution does and pass their tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rqat.registry import Registry
from rqat.scaffold import new_plugin

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


def install(source: Path, target: Path) -> None:
    """Installs the distribution in `source` into the folder `target`, from a copy, so that no build is left behind."""
    pytest.importorskip("hatchling")
    copied = target.with_name(f"{target.name}-{source.name}")
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run("-m", "pip", "install", *offline, "--target", str(target), str(copied), cwd=copied, site=target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rqat-hello installed into it."""
    target = tmp_path_factory.mktemp("site")
    install(HELLO, target)
    return target


def test_the_example_is_found_by_its_entry_point(site: Path, tmp_path: Path):
    code = (
        "from rqat.registry import Registry; r = Registry.discover(); c = r.card('quantizer', 'hello')\n"
        "assert not r.broken, r.broken\nprint(c.owner, c.version, c.module, type(r.make(c, c.options())).__name__)"
    )
    assert run("-c", code, cwd=tmp_path, site=site).split() == ["rqat-hello", "0.1.0", "rqat_hello", "PercentileClip"]


@pytest.mark.slow
def test_the_example_and_a_new_plugin_pass_their_tests(site: Path, tmp_path: Path):
    """The new plugin is made, installed and tested by the commands that `rqat plugins new` prints."""
    made = new_plugin(Registry.discover(), "rqat-acme-quant", "rqat_gptq", parent=tmp_path)
    install(made.folder, site)
    own = [str(shutil.copytree(HELLO / "tests", tmp_path / "hello")), str(made.folder / "tests")]
    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *own, cwd=tmp_path, site=site)
    assert "passed" in said
    assert "skipped" not in said
