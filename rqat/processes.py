"""This process among several that do one step together, one for each GPU; see `launcher` for who starts them.

When they train each takes its share of every batch, and holds the whole model, or rows of it (`rqat.train.shards`);
when they evaluate, some of the problems (`rqat.evals.saved`). They wait for each other in the collective operations of
one process group, which lives as long as they do. The first, of rank 0, leads: it alone writes the step's results.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import RqatError

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables by which libraries recognize one of several processes, and then wait for the others."""

LONGEST = timedelta(days=1)
"""Of one collective operation: the leader writes a checkpoint while the others wait in the next one."""

PATIENCE_S = 10.0
"""Seconds that all but the first leave the first to say what is wrong: torchrun ends all with the first that ends."""


class WorkerFailed(Exception):
    """A bug in one of several; the message is its traceback, or the last it has printed."""


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; alone unless told otherwise.

    Attributes:
        rank: of this process; 0 leads.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Meets the others that torch's launcher or torchrun has started, and takes this process's GPU.

        Args:
            device: "cuda" (NCCL, and the GPU whose number is LOCAL_RANK) or "cpu" (gloo).
        """
        import torch

        own: dict[str, Any] = {}
        if device == "cuda":
            own["device_id"] = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(own["device_id"])
        torch.distributed.init_process_group(_backend(device), timeout=LONGEST, **own)
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the first, or alone."""
        return self.rank == 0

    def gather(self, text: str = "") -> list[str]:
        """Every process's `text`, by rank. To be called by all: each waits for the others."""
        texts = [text] * self.count
        if self.count > 1:
            import torch.distributed

            torch.distributed.all_gather_object(texts, text)
        return texts

    def agree(self, verdict: bool) -> bool:
        """Whether all say yes. To be called by all."""
        return all(self.gather("yes" if verdict else ""))

    def arguments(self, device: str) -> dict[str, Any]:
        """Settings of a Trainer that trains together."""
        if self.count == 1:
            return {}
        return {
            "ddp_backend": _backend(device),
            # Frozen models have none that change.
            "ddp_broadcast_buffers": False,
            # DDP would lay out its buckets anew after the first step, and a sum of three or more depends on the layout:
            # a run that resumes from a checkpoint would end with other bits. With this it does not.
            "ddp_find_unused_parameters": True,
        }


def work_alone() -> None:
    """Keeps libraries from waiting for other processes, whatever has started this one.

    Raises:
        RqatError: torchrun, or `accelerate launch`, has started several.
        SystemExit: likewise, in all but the first.
    """
    given = {name: os.environ.pop(name, "") for name in RANKS}
    count = given["WORLD_SIZE"]
    if "TORCHELASTIC_RUN_ID" not in os.environ or count in ("", "1"):
        return
    if given["RANK"] != "0":
        time.sleep(PATIENCE_S)
        raise SystemExit(RqatError.exit_code)
    raise RqatError(
        f"rqat starts its processes itself, and a launcher has started {count} of it.",
        hint=f"Start it without torchrun or accelerate: rqat qat --processes {count} ...",
    )


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"
