"""Block-AP (arXiv 2407.11062, 3.2): a block's weights and scales, trained on what the original block puts out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch

import rqat

from . import Options
from .task import Task

log = logging.getLogger("rqat")


class BlockAp(rqat.Quantizer):
    """Each block starts from another quantizer's result; a layer by itself, as the model's head is, ends with it."""

    needs: ClassVar[frozenset[rqat.Statistic]] = frozenset({"hessian", "streams"})
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.start = rqat.quantizer_of(options.start)
        self.needs = type(self).needs | self.start.needs  # type: ignore[misc]
        self.tied_ends = self.start.tied_ends  # type: ignore[misc]

    @property
    def layerwise(self) -> rqat.Quantizer:
        """See `rqat.Quantizer`."""
        return self.start

    def quantize_linear(
        self, weight: torch.Tensor, stats: rqat.LinearStats, scheme: rqat.Scheme
    ) -> rqat.QuantizedWeight:
        """See `rqat.Quantizer`."""
        return self.start.quantize_linear(weight, stats, scheme)

    def quantize_block(
        self, block: rqat.Block, stats: Mapping[str, rqat.LinearStats]
    ) -> dict[str, rqat.QuantizedWeight]:
        """See `rqat.Quantizer`."""
        task = None
        if block.streams is not None and block.inputs and self.options.epochs:
            task = Task(block.streams, self.options)  # before anything in the block changes
        made = self.start.quantize_block(block, stats)
        if task is None:
            return made
        made = {name: replace(layer, scheme=block.schemes[name]) for name, layer in made.items()}
        before = {
            name: (parameter.detach().clone(), parameter.requires_grad)
            for name, parameter in block.module.named_parameters()
        }
        try:
            with torch.enable_grad():
                return self._train(block, task, made)
        finally:
            # The host compares with these, and puts the result into the model by itself.
            for name, parameter in block.module.named_parameters():
                weight, trained = before[name]
                parameter.detach().copy_(weight)
                parameter.requires_grad_(trained)
                parameter.grad = None

    def _train(
        self, block: rqat.Block, task: Task, made: dict[str, rqat.QuantizedWeight]
    ) -> dict[str, rqat.QuantizedWeight]:
        """The best of all epochs, the start among them; a note tells where training gained nothing."""
        options = self.options
        optimizer = rqat.QuantizedOptimizer(
            block.module,
            made,
            lr=options.lr,
            lr_in="size",
            scale_lr=options.scale_lr,
            zero_lr=options.zero_lr,
            latents={name: block.linear(name).weight.detach().float() for name in made},
            reach=options.reach,
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        first = best = task.error()
        notes, stopped = {name: layer.note for name, layer in made.items()}, ""
        for epoch in range(options.epochs):
            try:
                self._epoch(epoch, task, optimizer, rates)
            except rqat.NumericsError as failure:
                stopped = f"epoch {epoch + 1}: {failure.message}"
                break
            error = task.error()
            if error < best:
                best = error
                made = {name: replace(layer, note=notes[name]) for name, layer in optimizer.quantized_layers().items()}
        log.info("%s: error on sequences held out %.4f, trained %.4f", block.name, first, best)
        told = [f"trained no further: {stopped}"] if stopped else []
        if best == first:
            told.append(f"no epoch was better than the start (error {first:.4f} on sequences held out)")
        last = block.names()[-1]
        return made | {last: replace(made[last], note="; ".join(filter(None, (notes[last], *told))))}

    def _epoch(self, epoch: int, task: Task, optimizer: rqat.QuantizedOptimizer, rates: Sequence[float]) -> None:
        """Trains on every sequence once.

        Args:
            rates: of the optimizer's groups, at first.

        Raises:
            NumericsError: a gradient is not finite.
        """
        batches = task.batches(epoch)
        for index, batch in enumerate(batches):
            share = task.share_of_rate((epoch + index / len(batches)) / self.options.epochs)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = share * rate
            task.loss(*batch).backward()
            optimizer.step()
            optimizer.zero_grad()
