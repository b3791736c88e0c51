"""Plugins of strangers, and a recipe of each that is run: what the contract has to carry.

Every folder holds one plugin as its author would write it, which sees nothing of rqat but its face, and the tests of
what it is for. A test installs it with `install` and runs `rqat` on it, as anybody would.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.storage import read_json_lines
from tests.plugin_maker import write_metadata

FOLDER = Path(__file__).parent


def install(monkeypatch: pytest.MonkeyPatch, site: Path, folder: str, module: str) -> None:
    """Installs the plugin of a folder here, as far as Python can tell; its metadata go to `site`."""
    site.mkdir(exist_ok=True)
    write_metadata(site, module.replace("_", "-"), module)
    monkeypatch.syspath_prepend(str(FOLDER / folder))
    monkeypatch.syspath_prepend(str(site))


def rqat(*arguments: object) -> str:
    """What a command prints; it has to succeed."""
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def qat(folder: Path, recipe: str) -> tuple[list[dict[str, float]], str]:
    """Runs a recipe in `folder`; returns the lines of its only training's log, and what the command printed."""
    path = folder / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    printed = rqat("qat", "--recipe", path, "-o", folder / "run")
    [log] = (folder / "run").glob("*-train-*/training.jsonl")
    return read_json_lines(log), printed
