"""The process that computes: started when first asked, killed when it hangs, shared by all threads of a process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..contracts import Verdict

START_SECONDS = 120.0
"""How long the checker may take to import math-verify; tens of seconds on a cold disk."""

GRACE_SECONDS = 1.0
"""How much longer than allowed is waited for a process that stops itself, before it is killed."""


class Checker:
    """A persistent `checker.py`, started when first asked and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, gold: str, answer: str, kind: str, timeout_s: float) -> Verdict:
        """Compares two answers; `unverifiable` when the process dies or is late.

        Args:
            gold: the right answer.
            kind: see `equality.Compute`.
            timeout_s: seconds that comparing may take.
        """
        asked = {"gold": gold, "answer": answer, "kind": kind, "seconds": timeout_s}
        question = json.dumps(asked) + "\n"
        with self._lock:
            process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(question.encode())
                process.stdin.flush()
                verdict = self._line(process, timeout_s + GRACE_SECONDS)
            except BrokenPipeError:
                verdict = ""
            except BaseException:
                # Interrupted between question and answer: the next question must not read this answer.
                self.stop()
                raise
            if verdict in ("correct", "wrong", "unverifiable"):
                return verdict  # type: ignore[return-value]
            self.stop()
            return "unverifiable"

    def stop(self) -> None:
        """Ends the process; a forked child leaves its parent's alone."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.stop()
        # -P: the script's folder must not shadow modules that math-verify imports.
        command = [sys.executable, "-P", str(Path(__file__).with_name("checker.py"))]
        # In what order sympy simplifies depends on the hashes of names: a verdict must not depend on the process.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._owner = os.getpid()
        if self._line(self._process, START_SECONDS) != "ready":
            self.stop()
            raise RuntimeError(f"the answer checker did not start: {' '.join(command)}")
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], timeout_s: float) -> str:
        """The next line of output; empty when none comes in time."""
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not text.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return ""
                piece = os.read(process.stdout.fileno(), 4096)
                if not piece:
                    return ""
                text += piece
        return text.decode().strip()


CHECKER = Checker()
atexit.register(CHECKER.stop)
