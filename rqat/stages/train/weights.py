"""Where the weights of a train step come from, and what is left of them at its end."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...job import Job

if TYPE_CHECKING:
    import transformers
    from torch import Tensor

    from ...contracts import QuantizedWeight
    from ...model.checkpoint import Checkpoint
    from ...train.optimizer import QuantizedOptimizer
    from ...train.shards import Share
    from . import TrainKeys


def start_of(job: Job, folder: Path) -> Checkpoint:
    from ...model.checkpoint import load_checkpoint
    from ...model.devices import default_dtype

    return load_checkpoint(folder, device=job.device, dtype=default_dtype(job.device, job.plan.model.dtype))


def latents_of(
    job: Job,
    start: Checkpoint,
    folder: Path,
    source: transformers.PreTrainedModel | None,
    keys: TrainKeys,
    share: Share,
) -> tuple[Mapping[str, Tensor], str]:
    """Where the latent weights start, and what that is called in the facts; see `rqat.train.latents`.

    Args:
        source: the model before quantization if it is in memory already; else it is loaded when needed.
        keys: how far from their codes' values they may start, and whether there are any.
        share: of every layer, what is here.
    """
    from ...model.transforms import apply_transforms
    from ...train.latents import first_latents, load_latents
    from ...train.shards import split

    if keys.lr is None:
        return {}, "nowhere: codes stay"
    carried = load_latents(folder, start.layers, share)
    if carried:
        return carried, "the train step before"
    if start.transforms:  # a copy of its own: a teacher stays as it was before them
        source = job.original.copied(job.plan.model, device=job.device, offline=job.offline)[0]
        apply_transforms(source, [(one.name, one.options, one.make(job.registry)) for one in start.transforms])
    elif source is None:
        source = job.original.get(job.plan.model, device=job.device, offline=job.offline, counted=False)[0]
    if share.count == 1:
        return first_latents(source, start.model, start.layers, reach=keys.latent_reach)
    split(source, job.processes)
    return first_latents(source, start.model, start.layers, reach=keys.latent_reach, agreed=job.processes.agree)


def learned(
    job: Job, start: Checkpoint, optimizer: QuantizedOptimizer, rows: Mapping[str, int]
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor], dict[str, float]]:
    """The trained layers, where their latents stand, and how much of them has changed; with a model that was split,
    which is whole again afterwards, for the process that leads.

    Args:
        rows: of every layer.
    """
    from ...train.latents import latent_offsets
    from ...train.shards import gathered, is_split, join, joined_layers

    layers = optimizer.quantized_layers()
    counts = changed(start.layers, {name: layers[name] for name in optimizer.trained})
    if not is_split(start.model):
        offsets = latent_offsets(optimizer.latents(), layers) if job.processes.leads else {}
        return layers, offsets, shares([counts])
    moved = shares([json.loads(text) for text in job.processes.gather(json.dumps(counts))])
    mine = latent_offsets(optimizer.latents(), layers)
    # Room for what is gathered: no step follows. Of the teacher all blocks are parts, its ends are whole.
    optimizer.inner.state.clear()
    start.model.zero_grad()
    job.original.release()
    gc.collect()  # a trainer refers to itself, and to the teacher
    offsets = {}
    for name in () if optimizer.fixed_codes else optimizer.trained:
        part = mine.get(name, layers[name].codes.half())  # of which no row is here
        offset = gathered(part.to(job.device), rows[name], job.processes)
        if job.processes.leads:
            offsets[name] = offset.cpu()
    join(start.model, job.processes)
    return joined_layers(layers, rows, job.device, job.processes), offsets, moved


def changed(before: Mapping[str, QuantizedWeight], after: Mapping[str, QuantizedWeight]) -> dict[str, list[int]]:
    """How many numbers of quantized layers training has made others, and of how many, by what they are.

    Args:
        before: layers; in several processes that have split a model, the rows that are here.
        after: the same ones, trained.

    Returns:
        "codes", "scales" and "zeros", each with how many have changed and how many there are.
    """
    found = {"codes": [0, 0], "scales": [0, 0], "zeros": [0, 0]}
    for name, layer in after.items():
        old = before[name]
        pairs = (("codes", old.codes, layer.codes), ("scales", old.scale, layer.scale), ("zeros", old.zero, layer.zero))
        for kind, was, now in pairs:
            found[kind][0] += int((was.to(now.device) != now).sum())
            found[kind][1] += now.numel()
    return found


def shares(counts: Sequence[Mapping[str, list[int]]]) -> dict[str, float]:
    """`codes_changed`, `scales_changed` and `zeros_changed`, from 0 to 1, of what `changed` has counted everywhere."""
    sums = {kind: [sum(one[kind][place] for one in counts) for place in (0, 1)] for kind in counts[0]}
    return {f"{kind}_changed": count / max(1, total) for kind, (count, total) in sums.items()}


def copy_latents(source: Path, target: Path) -> None:
    from ...train.latents import FILE

    if (source / FILE).exists():
        shutil.copyfile(source / FILE, target / FILE)
