"""Where the weights of a train step come from, and what is left of them at its end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
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


def start_of(job: Job, folder: Path) -> Checkpoint:
    from ...model.checkpoint import load_checkpoint
    from ...model.devices import default_dtype

    return load_checkpoint(folder, device=job.device, dtype=default_dtype(job.device, job.plan.model.dtype))


def latents_of(
    job: Job,
    start: Checkpoint,
    folder: Path,
    source: transformers.PreTrainedModel | None,
    reach: float,
    share: Share,
) -> tuple[Mapping[str, Tensor], str]:
    """Where the latent weights start, and what that is called in the facts; see `rqat.train.latents`.

    Args:
        source: the model before quantization if it is in memory already; else it is loaded when needed.
        reach: how far from their codes' values they may start, where no training came before.
        share: of every layer, what is here.
    """
    from ...model.transforms import apply_transforms
    from ...train.latents import first_latents, load_latents
    from ...train.shards import split

    carried = load_latents(folder, start.layers, share)
    if carried:
        return carried, "the train step before"
    if start.transforms:  # a copy of its own: a teacher stays as it was before them
        source = job.original.copied(job.plan.model, device=job.device, offline=job.offline)[0]
        apply_transforms(source, [(one.name, one.options, one.make(job.registry)) for one in start.transforms])
    elif source is None:
        source = job.original.get(job.plan.model, device=job.device, offline=job.offline, counted=False)[0]
    if share.count == 1:
        return first_latents(source, start.model, start.layers, reach=reach)
    split(source, job.processes)
    return first_latents(source, start.model, start.layers, reach=reach, agreed=job.processes.agree)


def learned(
    job: Job, start: Checkpoint, optimizer: QuantizedOptimizer, rows: Mapping[str, int]
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """The trained layers, and where their latents stand; with a model that was split, which is whole again afterwards,
    for the process that leads.

    Args:
        rows: of every layer.
    """
    from ...train.latents import latent_offsets
    from ...train.shards import gathered, is_split, join, joined_layers

    layers = optimizer.quantized_layers()
    if not is_split(start.model):
        return (layers, latent_offsets(optimizer.latents(), layers)) if job.processes.leads else ({}, {})
    mine = latent_offsets(optimizer.latents(), layers)
    optimizer.inner.state.clear()  # room for what is gathered: no step follows
    offsets = {}
    for name in optimizer.trained:
        part = mine.get(name, layers[name].codes.half())  # of which no row is here
        offset = gathered(part.to(job.device), rows[name], job.processes)
        if job.processes.leads:
            offsets[name] = offset.cpu()
    join(start.model, job.processes)
    return joined_layers(layers, rows, job.device, job.processes), offsets


def copy_latents(source: Path, target: Path) -> None:
    from ...train.latents import FILE

    if (source / FILE).exists():
        shutil.copyfile(source / FILE, target / FILE)
