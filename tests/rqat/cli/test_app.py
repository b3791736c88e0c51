"""The command line as a whole: speed, exit codes, where output goes."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rqat import ModelError, hookimpl
from rqat.cli.app import build
from rqat.registry import Registry

REPOSITORY = Path(__file__).parents[3]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that finds rqat the way the tests do."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins", "ls"], ["recipes", "ls"], ["--version"], ["eval", "--help"]]
)
def test_light_commands_import_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = f"""
import sys, time
sys.argv = ["rqat", *{arguments!r}]
from rqat.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({{"torch", "transformers", "datasets", "trl", "lm_eval", "numpy"}} & set(sys.modules))
assert not heavy, heavy
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_version() -> None:
    result = CliRunner().invoke(build(), ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"rqat \d+\.\d+\.\d+\S*\n", result.stdout)


@pytest.mark.parametrize("arguments", [["wobble"], ["doctor", "--wobble"], ["recipes", "cat"], ["plugins", "wobble"]])
def test_unknown_commands_options_and_missing_arguments_are_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert "Traceback" not in result.stderr


class _Boom:
    """A plugin module with commands that fail in all the ways a command can."""

    __name__ = "boom"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        @app.command("boom")
        def boom() -> None:
            raise self.error


def _with_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> typer.Typer:
    registry = Registry.discover()
    registry._commands.append(("boom", "test", _Boom(error).register_commands))
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: registry))
    return build()


def test_a_users_mistake_is_one_message_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    app = _with_command(monkeypatch, ModelError("'x' is no model.", hint="Name one."))
    result = CliRunner().invoke(app, ["boom"])
    assert result.exit_code == 2
    assert result.stderr == "Error: 'x' is no model.\nHint: Name one.\n"
    assert result.stdout == ""


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(_with_command(monkeypatch, ZeroDivisionError("oh")), ["boom"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(_with_command(monkeypatch, KeyboardInterrupt()), ["boom"])
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr


def test_a_plugin_whose_commands_fail_is_reported_and_sinks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(app: typer.Typer) -> None:
        raise RuntimeError("cannot add")

    registry = Registry.discover()
    registry._commands.append(("sinker", "test", broken))
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: registry))
    result = CliRunner().invoke(build(), ["plugins", "ls"])
    assert result.exit_code == 0
    assert "sinker" in result.stdout
    assert "cannot add" in result.stdout


def test_offline_reaches_the_libraries() -> None:
    code = """
import os, sys
sys.argv = ["rqat", "--offline", "plugins", "ls", "--json"]
os.environ.pop("HF_HUB_OFFLINE", None)
from rqat.cli.app import main
try:
    main()
finally:
    print(os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"], file=sys.stderr)
"""
    assert python(code).stderr.strip() == "1 1"


def test_global_options_may_stand_behind_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    result = CliRunner().invoke(build(), ["plugins", "ls", "--json", "-v", "--offline"])
    assert result.exit_code == 0, result.stderr
    assert os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_doctor_is_content_and_speaks_json() -> None:
    result = CliRunner().invoke(build(), ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["packages"]["torch"]
    assert found["cpus"] >= 1
    shown = CliRunner().invoke(build(), ["doctor"])
    assert shown.exit_code == 0
    assert "transformers" in shown.stdout


def _odd_signature(app: typer.Typer) -> None:
    @app.command("odd")
    def odd(value: NoSuchType) -> None: ...  # type: ignore[name-defined] # noqa: F821


def _taken_name(app: typer.Typer) -> None:
    @app.command("quantize")
    def mine() -> None:
        """Not rqat's own."""


@pytest.mark.parametrize(
    ("function", "told"), [(_odd_signature, "NoSuchType"), (_taken_name, "there is a command 'quantize' already")]
)
def test_a_plugin_command_that_cannot_be_added_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[typer.Typer], None], told: str
) -> None:
    registry = Registry.discover()
    registry._commands.append(("sinker", "test", function))
    monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: registry))
    app = build()
    assert told in CliRunner().invoke(app, ["plugins", "ls"]).stdout
    assert "servers load" in CliRunner().invoke(app, ["quantize", "--help"]).stdout


def test_ctrl_c_within_a_finalizer_is_not_lost() -> None:
    """Python drops an exception raised there, so the interrupt has to be given another try."""
    code = """
import os, signal, sys, time
sys.argv = ["rqat", "linger"]
from rqat.registry import Registry
registry = Registry.discover()

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

def commands(app):
    @app.command("linger")
    def linger():
        Slow()
        time.sleep(20)
        print("was not interrupted")

registry._commands.append(("lingerer", "test", commands))
Registry.discover = classmethod(lambda cls: registry)
from rqat.cli.app import main
main()
"""
    done = python(code)
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip() == "Interrupted."


def test_options_that_are_shown_by_their_own_name_spell_their_flag() -> None:
    """typer 0.27 takes a metavar that is the name in capitals for the name: `--FORMAT`."""
    for path in (REPOSITORY / "rqat" / "cli").glob("*.py"):
        for argument in ast.walk(ast.parse(path.read_text())):
            if not isinstance(argument, ast.arg) or argument.annotation is None:
                continue
            for call in ast.walk(argument.annotation):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "typer.Option":
                    given = any(isinstance(one, ast.Constant) and str(one.value)[:2] == "--" for one in call.args)
                    shown = [ast.literal_eval(word.value) for word in call.keywords if word.arg == "metavar"]
                    assert given or argument.arg.upper() not in shown, f"{path}: {argument.arg}"
