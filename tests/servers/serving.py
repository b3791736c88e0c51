"""A server with OpenAI's API on this machine, for as long as it is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import SERVERS, python_of

START_S = 300.0
"""How long vLLM may take to be there; on two busy cores it imports for a minute."""


@contextmanager
def vllm(model: Path, work: Path, *flags: str) -> Iterator[str]:
    """vLLM on the CPU; the address of its API.

    Args:
        work: a folder for its log.
        flags: more of `vllm serve`.

    Raises:
        RuntimeError: it does not start; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model", "--enforce-eager", *flags]
    # An engine of its own process, which serves several requests at once; the probes' setting is for one.
    settings = {key: value for key, value in SERVERS["vllm"].settings if key != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    outer = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = work / "vllm.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=work, env=outer | settings, start_new_session=True
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM is not there: {log.read_text()[-3000:]}")
