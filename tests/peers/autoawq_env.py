"""Builds AutoAWQ's own environment and looks whether it reads our `awq` files as they are meant.

    python -m tests.peers.autoawq_env           builds it under RQAT_SERVERS, then checks

AutoAWQ is no longer developed: its last release, 0.2.9, goes with transformers 4.51, older than any that rqat takes, so
it shares no environment with anything here. Small models of the families that it and our servers' tests know are
exported by rqat, opened by AutoAWQ on the CPU, and compared: the weights that it makes of the codes, the logits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.servers.environments import Server, build, environment, python_of

from .environments import TORCH

AUTOAWQ = {
    "autoawq": Server(
        (TORCH, "transformers==4.51.3", "datasets==3.6.0", "autoawq==0.2.9"),
        "probe_autoawq.py",
        ("awq",),
        "0.2.9",
        # What pip brings along compiles for GPUs alone; without it AutoAWQ computes with torch.
        removed=("triton",),
    )
}

FAMILIES = ("llama", "qwen2", "qwen3")

WEIGHTS = 2.0**-11
"""Largest difference of a weight as a share of it: AutoAWQ multiplies codes and scales in float16."""

LOGITS = 0.01
"""Largest difference of logits, as a share of the largest: AutoAWQ computes in float16; another order of codes, or zero
points off by one, give 0.5 and more."""


def checked(folders: Iterable[Path], starts: Iterable[Path], work: Path) -> dict[str, dict[str, Any]]:
    """What AutoAWQ makes of exported folders: by name, `loads` with differences of `weights` and `logits`, or `words`.

    Args:
        starts: the steps that they were exported from.

    Raises:
        RuntimeError: AutoAWQ itself does not start.
    """
    from tests.servers.files import prompts

    folders, python = list(folders), python_of("autoawq", AUTOAWQ)
    assert python is not None, "not built: python -m tests.peers.autoawq_env"
    (work / "prompts.json").write_text(json.dumps(prompts()))
    command = [python, Path(__file__).parent / AUTOAWQ["autoawq"].probe, work / "prompts.json", *folders]
    own = environment(AUTOAWQ["autoawq"])
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=work, check=False)
    answers = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if len(answers) < len(folders):
        raise RuntimeError(f"AutoAWQ ended early: {done.stderr[-2000:]}")
    return {
        folder.name: answer if "words" in answer else {"loads": True, **differences(answer, start)}
        for folder, start, answer in zip(folders, starts, answers, strict=True)
    }


def differences(answer: dict[str, Any], start: Path) -> dict[str, float]:
    """The largest difference of a weight, as a share of it, and of a logit, as a share of the largest.

    Raises:
        ValueError: AutoAWQ found other layers than were quantized.
    """
    import torch
    from safetensors.torch import load_file

    from rqat.model.checkpoint import decoded, load_checkpoint
    from tests.servers.files import last_logits

    theirs, layers = load_file(answer["weights"]), load_checkpoint(start).layers
    if theirs.keys() != layers.keys():
        raise ValueError(f"other layers: {sorted(theirs.keys() ^ layers.keys())}")
    mine = {name: decoded(layer, torch.float32) for name, layer in layers.items()}
    apart = [((theirs[name].float() - mine[name]).abs() / mine[name].abs().clamp(min=1e-6)).max() for name in mine]
    expected, found = last_logits(start), torch.tensor(answer["logits"])
    return {
        "weights": float(max(apart)),
        "logits": float((found - expected).abs().max() / expected.abs().max()),
    }


def main() -> int:
    """See the module; 0 where every model is read as it is meant."""
    from tests.servers.files import export, save_rounded

    try:
        build("autoawq", AUTOAWQ)
    except subprocess.CalledProcessError as error:
        print(f"AutoAWQ {AUTOAWQ['autoawq'].version} cannot be built here: {' '.join(map(str, error.cmd))} failed.")
        return 2
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        starts = [save_rounded(work / "starts" / family, "w4g128", family) for family in FAMILIES]
        folders = [work / family for family in FAMILIES]
        for start, folder in zip(starts, folders, strict=True):
            export(start, folder, "awq")
        found = checked(folders, starts, work)
    for family, each in found.items():
        print(f"AutoAWQ {AUTOAWQ['autoawq'].version}, {family}: " + json.dumps(each))
    right = [each["loads"] and each["weights"] <= WEIGHTS and each["logits"] <= LOGITS for each in found.values()]
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
