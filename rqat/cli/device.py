"""Which device a command works on: the first GPU that is visible, or what `--device` says.

`--device` makes the others invisible (CUDA_VISIBLE_DEVICES) before torch is imported: what libraries choose by
themselves, and processes that are started later, then use no other.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RqatError

GPUS = Path("/proc/driver/nvidia/gpus")
"""What the NVIDIA driver shows: an entry for every GPU."""

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """Numbers or names of the GPUs that CUDA will use here, in order; asking torch would take seconds."""
    there = len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    named = os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(there)]
    chosen = [name.strip() for name in named.split(",")]
    # CUDA reads the list up to the first entry that is none.
    ends = next((index for index, name in enumerate(chosen) if name in ("", "-1")), len(chosen))
    return chosen[:ends] if there else []


def likely_device() -> str:
    """ "cuda" where there is a GPU that may be used, else "cpu"."""
    return "cuda" if visible_gpus() else "cpu"


def choose(name: str | None) -> str | None:
    """Leaves only one device visible: "cpu", or "cuda:1" for the second of the visible GPUs; None leaves all.

    Raises:
        RqatError: there is no such device.
    """
    if name is None:
        return None
    gpus = visible_gpus()
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    number = int(found[1] or 0) if found else -1
    if found is None or (name != "cpu" and number >= len(gpus)):
        known = ["cpu", *(f"cuda:{index}" for index in range(len(gpus)))]
        seen = f" ({VISIBLE} is '{os.environ[VISIBLE]}')" if VISIBLE in os.environ else ""
        raise RqatError(f"--device: there is no '{name}' here{seen}.", hint=f"Known: {', '.join(known)}.")
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers that nvidia-smi shows
    os.environ[VISIBLE] = "" if name == "cpu" else gpus[number]
    return name


Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.  [default: the first GPU]", callback=choose),
]
"""An option of commands that compute; it takes effect when it is read."""
