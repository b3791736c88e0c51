"""Hooks: everything a plugin needs is on the public face and documented, and every hook has an example that works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rqat
from rqat import contracts, hookspecs
from rqat.cards import KINDS, keywords, kind_of
from rqat.registry import HOOKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "hooks.md"
EXAMPLES = ROOT / "docs" / "examples" / "hooks"


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`rqat` with every example given by its path."""
    plugins = [word for file in sorted(EXAMPLES.glob("*.py")) for word in ("--plugin", str(file))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "plugins", ROOT / "kernels")))}
    command = [sys.executable, "-P", "-m", "rqat", *words, *plugins]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_every_kind_has_a_hook_with_a_register_of_its_own():
    assert {kind_of(hook) for hook in HOOKS} == {*KINDS, "command"}
    for kind in KINDS:
        known = keywords(f"register_{kind}s")
        assert list(known)[:4] == ["load", "options", "summary", "paper"]
        assert known["options"] is KINDS[kind].options
        assert getattr(rqat, f"Register{kind.capitalize()}") is getattr(hookspecs, f"Register{kind.capitalize()}")


def test_every_type_that_passes_a_hook_is_on_the_face():
    registers = {name for name in vars(hookspecs) if name.startswith("Register")}
    assert {*contracts.__all__, *registers, "API"} <= set(rqat.__all__)
    assert [name for name in rqat.__all__ if not hasattr(rqat, name)] == []


def test_every_type_that_passes_a_hook_is_documented():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in contracts.__all__ if f"\n### {name}\n" not in text] == []


def test_every_hook_has_an_example_on_its_page():
    text = PAGE.read_text(encoding="utf-8")
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {f"my_{kind_of(hook)}" for hook in HOOKS}
    for file in EXAMPLES.glob("*.py"):
        assert f"```python\n{file.read_text(encoding='utf-8')}```" in text, file


@pytest.mark.slow
def test_every_example_keeps_its_promises(tmp_path: Path):
    done = run("plugins", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        assert f"(my_{kind}, my_{kind}.py 0)" in done.stdout
    assert "skipped" not in done.stdout


def test_the_example_of_a_command_works(tmp_path: Path):
    (tmp_path / "large").write_bytes(b"12345")
    (tmp_path / "small").write_bytes(b"1")
    done = run("my-sizes", ".", cwd=tmp_path)
    assert done.stdout.split() == ["5", "large", "1", "small"], done.stderr
    wrong = run("my-sizes", "nowhere", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "Error: 'nowhere' is not a folder.\nHint: Name a folder.\n")


def test_the_example_of_a_grid_decodes_what_it_quantizes(tmp_path: Path):
    import torch

    sys.path.insert(0, str(EXAMPLES))
    try:
        from my_grid import Halves
    finally:
        sys.path.remove(str(EXAMPLES))
    grid = Halves(rqat.Scheme.parse("w2g128"))
    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    scale, zero = grid.fit(weight)
    codes = grid.quantize(weight, scale, zero)
    decoded = grid.decode(codes, scale, zero)
    assert grid.quantize(decoded, scale, zero).equal(codes)
    assert set((decoded / scale).unique().tolist()) == {-1.5, -0.5, 0.5, 1.5}
    assert (decoded - weight).abs().max() <= scale.max() / 2 + 1e-6
