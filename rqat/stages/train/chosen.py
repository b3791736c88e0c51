"""What keys of a train step come to that leave it to the memory that is free: `auto`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...job import Job, log
from ...lighter import room_for
from ...stage import Step
from ...storage import read_json, write_json

if TYPE_CHECKING:
    from . import TrainKeys

CHOSEN = "chosen.json"
"""Where it is kept, beside the checkpoints."""


def chosen_for(job: Job, step: Step, keys: TrainKeys) -> dict[str, Any]:
    """Values by key, for the memory that is free now; where the step was begun already, those it had.

    Sums over another micro-batch, or over other parts, are rounded in another way.
    """
    count = job.processes.count
    left = {"micro_batch"} if keys.micro_batch == "auto" else set()
    if keys.shard == "auto" and count > 1:
        left.add("shard")
    if not left:
        return {}
    record = job.scratch(step) / CHOSEN
    chosen: dict[str, Any] = read_json(record) or {}
    if left - chosen.keys() or keys.batch % (chosen.get("micro_batch", 1) * count):
        chosen = _chosen(job, step, keys)
        log.info("%s: %s", step.name, ", ".join(f"{key} {value}" for key, value in chosen.items()))
        if job.processes.leads:
            record.parent.mkdir(exist_ok=True)
            write_json(record, chosen)
    return {key: chosen[key] for key in sorted(left)}


def _chosen(job: Job, step: Step, keys: TrainKeys) -> dict[str, Any]:
    """What all processes can do: one of them may have less memory."""
    learns = keys.teacher is None and step.parts["objective"].teacher
    held = job.original.held_bytes if learns or keys.watch is not None else 0
    own = room_for(step, job.plan, job.device, job.processes.count, held)
    told = [json.loads(text) for text in job.processes.gather(json.dumps(dict(own)))]
    least: dict[str, Any] = {}
    if "micro_batch" in own:
        least["micro_batch"] = min(one["micro_batch"] for one in told)
    if "shard" in own:
        least["shard"] = any(one["shard"] for one in told)
    return least
