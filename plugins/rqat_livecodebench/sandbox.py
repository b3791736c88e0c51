"""Runs programs by a command of the user's: the only place from which anything that a model wrote is run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import rqat

from .program import FAILED, PASSED

FILE = "{file}"
"""In a command: the path of the program, which is otherwise given on stdin."""

PASSED_ON = (
    *("PATH", "HOME", "USER", "LANG", "TMPDIR", "XDG_RUNTIME_DIR"),
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "CONTAINER_HOST"),
)
"""Variables that a command gets of the environment; no others, since some are secrets."""

GRACE_S = 30.0
"""How much longer than its program a sandbox may take to start and to end."""


@cache
def try_out(command: str) -> None:
    """Runs two programs of rqat's own, one that ends well and one that does not.

    Raises:
        RqatError: it cannot tell them apart.
    """
    right = run(command, f"raise SystemExit({PASSED})\n", GRACE_S)
    wrong = run(command, f"raise SystemExit({FAILED})\n", GRACE_S)
    if (right, wrong) != ("correct", "wrong"):
        raise rqat.RqatError(
            f"sandbox: '{command}' takes a program that ends with exit code {PASSED} for {right}, and one that ends "
            f"with {FAILED} for {wrong}.",
            hint="It has to run Python on the program, and end with its exit code.",
        )


def run(command: str, program: str, seconds: float) -> rqat.Verdict:
    """Has a command run a program.

    Args:
        command: what the user named.
        program: Python.
        seconds: that the program may take.

    Returns:
        "correct" and "wrong" for the two exit codes; "unverifiable" where a signal or the clock ended the sandbox.

    Raises:
        RqatError: the command cannot be run, or failed by itself.
    """
    with tempfile.TemporaryDirectory(prefix="rqat-") as folder:
        file = Path(folder, "program.py")
        in_file = FILE in command
        if in_file:
            file.write_text(program, encoding="utf-8")
        code, said = _ended(
            [word.replace(FILE, str(file)) for word in _words(command)],
            folder,
            "" if in_file else program,
            seconds + GRACE_S,
        )
    if code in (PASSED, FAILED):
        return "correct" if code == PASSED else "wrong"
    if code is None or code < 0 or code > 128:
        return "unverifiable"
    raise rqat.RqatError(
        f"sandbox: '{command}' failed with exit code {code}{': ' if said else '.'}{said}",
        hint=f"Try it by hand: echo 'raise SystemExit({FAILED})' | COMMAND has to end with exit code {FAILED}.",
    )


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise rqat.RqatError(f"sandbox: '{command}' is no command line: {error}.", hint="Mend the quotes.") from error
    if not words:
        raise rqat.RqatError("sandbox: the command is empty.", hint="Name one, or leave the key out.")
    return words


def _ended(words: list[str], folder: str, program: str, seconds: float) -> tuple[int | None, str]:
    """Exit code of a command, None if it was late, and the end of what it said of an error."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with tempfile.TemporaryFile() as told:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=told,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise rqat.RqatError(
                f"sandbox: '{words[0]}' cannot be run: {error.strerror or error}.", hint="Check the command."
            ) from error
        try:
            process.communicate(program.encode(errors="replace"), timeout=seconds)
            code: int | None = process.returncode
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told.seek(0)
        return code, " ".join(told.read(4000).decode(errors="replace").split())[-200:]
