"""The peers, each in an environment apart from rqat's own, built as those of the servers.

`python -m tests.peers.environments [NAME...]` builds them under RQAT_SERVERS (default: ~/.cache/rqat-servers),
everywhere with the same torch, whatever newer one a peer would take.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from tests.servers.environments import SERVERS, Server, build, python_of

TORCH = "torch==2.13.0"

PEERS = {
    # The environment that loads gptq files has GPTQModel already.
    "gptqmodel": Server(
        SERVERS["gptqmodel"].packages,
        "quantize_gptqmodel.py",
        ("gptq",),
        "7.6.0",
        settings=(("GPTQMODEL_CPU_WORKERS", "2"),),  # it asks for two threads that load, and gives itself one
    ),
    "llm-compressor": Server(
        (TORCH, "transformers==5.17.0", "compressed-tensors==0.19.0", "llmcompressor==0.14.0.1"),
        "quantize_llmcompressor.py",
        ("compressed-tensors",),
        "0.14.0.1",
    ),
    "auto-round": Server(
        (TORCH, "transformers==5.17.0", "auto-round==0.15.1"),
        "quantize_autoround.py",
        ("gptq",),
        "0.15.1",
    ),
}
"""Probes are the scripts that quantize; formats those that they write."""

DISTRIBUTIONS = {"gptqmodel": "gptqmodel", "llm-compressor": "llmcompressor", "auto-round": "auto-round"}
"""What pip calls them."""


def version_here(tool: str) -> str | None:
    """The version of a peer that this very interpreter would import; None where it has none."""
    try:
        return version(DISTRIBUTIONS[tool])
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PEERS:
        build(wanted, PEERS)
        print(wanted, python_of(wanted, PEERS))
