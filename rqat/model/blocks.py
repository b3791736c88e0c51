"""The walk that quantizes a model, decoder block by decoder block.

For each block: statistics at the inputs of its linear layers, the quantizer, then `w_hat` in place of the weights; the
next block sees what this one puts out now. A quantizer that needs no statistics needs no data and no forward pass.
The embedding comes first and the output head last, where patterns of the schemes name them: see `ends.py`.

With a folder to resume from, every finished block is kept there; an interrupted walk that is run again loads those and
ends with the same bytes as an unbroken one. And of a model that is read from its files (`streaming.py`), no more than
two blocks are in memory: one that is worked on, and the one before until it has been run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from rqat_kernels.dispatch import one_thread

from ..contracts import Block, LinearStats, QuantizedWeight, Quantizer, SharedInput
from ..errors import DataError, ModelError, NumericsError, PluginError
from ..grids import grid_of
from ..scheme import Scheme, Schemes
from .activations import Activations, TokenBatch
from .block_store import BlockStore, FinishedLayers, LayerReport
from .ends import embedding_block, end_shapes, head_block, is_tied
from .experts import separate_experts
from .families import FAMILIES, layout_of
from .layers import EMBEDDING, HEAD, choose_layers
from .output_error import input_scale, relative_error
from .presence import part_of, presence_of
from .streaming import Streamed
from .unloading import Unloading

if TYPE_CHECKING:
    import transformers

UNSEEN = "no token of the calibration data was sent there: rounded to the nearest"
"""Note of such a layer."""

Progress = Callable[[float, str], None]
"""Called with the number of blocks done, fractions included, and a note."""


def describe_blocks(
    model: transformers.PreTrainedModel,
    schemes: Schemes,
    *,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
) -> list[Block]:
    """The decoder blocks of a model, each with the layers that are to be quantized.

    Before them stands its beginning, if the embedding is to be quantized, behind them its end, if the head is.

    A group of layers whose input is also read by a skipped layer, or comes from one, has no `before`: nothing may be
    folded there.

    Raises:
        ModelError: the model has other blocks than the supported families, or see `layers.choose_layers`.
    """
    layout = layout_of(model.config)
    try:
        modules = list(model.get_submodule(layout.blocks))  # type: ignore[call-overload]
        linears = {}
        for name in layout.layer_names(len(modules)):
            linear = model.get_submodule(name)
            if not isinstance(linear, nn.Linear):
                raise AttributeError(f"{name} is a {type(linear).__name__}")
            linears[name] = (linear.out_features, linear.in_features)
    except AttributeError as error:
        raise ModelError(
            f"{type(model).__name__} has no decoder blocks of a known form: {error}.",
            hint=f"Supported: models of the families {', '.join(FAMILIES)}, not quantized before.",
        ) from error
    chosen = choose_layers(linears, schemes, skip=skip, indivisible=indivisible, ends=end_shapes(model))
    blocks = [embedding_block(model, chosen[EMBEDDING])] if EMBEDDING in chosen else []
    for index, module in enumerate(modules):
        name = layout.block(index)
        left_alone = {other for other in linears if other not in chosen}
        inputs = []
        for group in layout.inputs:
            names = tuple(layer for layer in group.names if f"{name}.{layer}" in chosen)
            free = names == group.names and f"{name}.{group.before}" not in left_alone
            if names:
                inputs.append(SharedInput(names, group.before if free else None))
        own = {layer: chosen[f"{name}.{layer}"] for group in inputs for layer in group.names}
        blocks.append(Block(name, module, inputs, own))
    return [*blocks, head_block(model, chosen[HEAD])] if HEAD in chosen else blocks


def quantize_model(
    model: transformers.PreTrainedModel | Streamed,
    token_batches: Sequence[TokenBatch],
    quantizer: Quantizer,
    schemes: Schemes | Scheme,
    *,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
    progress: Progress = lambda done, note: None,
    resume_dir: Path | None = None,
) -> tuple[FinishedLayers, list[LayerReport]]:
    """Quantizes the linear layers of a model in place: afterwards their weights are `w_hat`, where they are there.

    Args:
        model: a streamed one needs a `resume_dir`, and its tokens cannot be weighed ("saliency").
        schemes: of every layer; a single one is that of all.
        token_batches: calibration tokens; not looked at when `quantizer.needs` is empty.
        skip: shell patterns on full names of layers to leave as they are.
        indivisible: what to do with layers whose input features do not split into whole groups.
        resume_dir: existing folder where finished blocks are kept, and taken from. It must belong to this very model,
            data, quantizer and schemes.

    Returns:
        The quantized layers by full name, on the CPU, each with its scheme, and a report of each, both in the order
        data passes them. What is kept in a folder is read from there when it is asked for.

    Raises:
        ModelError: see `describe_blocks`. DataError: statistics are needed and there are no tokens.
        NumericsError: activations are not finite. PluginError: the quantizer breaks its contract.
    """
    if isinstance(model, Streamed):
        weights = model
    else:
        separate_experts(model)
        weights = Streamed(model)
    model = weights.model
    blocks = describe_blocks(model, Schemes.parse(schemes), skip=skip, indivisible=indivisible)
    if quantizer.needs and not token_batches:
        needed = " and ".join(sorted(quantizer.needs))
        raise DataError(
            f"{type(quantizer).__name__} needs calibration data ({needed}), and there is none.",
            hint="Add a calibration section to the recipe.",
        )
    assert weights.whole or resume_dir is not None, "what is let go of has to be kept somewhere"
    decoder_layers = [(block.name, block.module) for block in blocks if is_decoder_layer(block)]
    first = 0 if is_decoder_layer(blocks[0]) else -1  # decoder layers are counted from 0, what stands before is -1
    current, store = 0, BlockStore(resume_dir)
    unloading = Unloading(store, weights.device)
    activations = Activations(
        model,
        decoder_layers,
        token_batches,
        needs=quantizer.needs,
        tick=lambda share: progress(max(0.0, current + share), blocks[current - first].name),
        presence=presence_of(weights, blocks, [name for name, _ in decoder_layers], store, unloading),
    )
    activations.weigh(model, blocks)
    reports: list[LayerReport] = []
    with unloading:
        for current, block in enumerate(blocks, first):
            kept = store.find(block)
            if kept is None:
                store.forget()
                weights.enter(part_of(block))
                activations.remember(current)
                stays = weights.whole or bool(activations.awaits(current) and block.inputs)
                kept = _make(block, quantizer, activations, current, unloading, tied=is_tied(model), stays=stays)
                if not stays:
                    weights.leave(part_of(block))
            else:
                activations.remember(current)
                if weights.whole:
                    store.restore(block)
            reports.extend(kept)
            progress(current + 1, block.name)
    weights.leave_all()
    return store.layers, reports


def _make(
    block: Block,
    quantizer: Quantizer,
    activations: Activations,
    index: int,
    unloading: Unloading,
    *,
    tied: bool,
    stays: bool,
) -> list[LayerReport]:
    """Quantizes one block, in place where it stays, hands it over to be kept, and reports on its layers."""
    start = time.perf_counter()
    if _in_turn(block, quantizer):
        activations.advance(index)
        layers, reports = _quantize_in_turn(block, quantizer, activations, start)
    else:
        stats = statistics_of(block, quantizer, activations, index, tied=tied)
        layers, reports = _quantize_block(block, quantizer, stats, start, stays=stays)
    unloading.take(block, layers, reports)
    return reports


def is_decoder_layer(block: Block) -> bool:
    """Whether a block is neither the model's beginning nor its end."""
    return block.name not in ("", EMBEDDING.rpartition(".")[0])


def statistics_of(
    block: Block, quantizer: Quantizer, activations: Activations, index: int, *, tied: bool
) -> dict[str, LinearStats] | None:
    """Statistics of the layers of a block, and its streams; None where its layers are rounded to the nearest."""
    if index < 0:
        if not (tied and quantizer.tied_ends):
            return None
        collected = activations.collect_end(block) if quantizer.needs else LinearStats()
        return dict.fromkeys(block.names(), collected)
    if not block.name and "streams" in quantizer.needs and not quantizer.tied_ends:
        return None
    if not (quantizer.needs and block.inputs):
        return {name: LinearStats() for name in block.names()}
    activations.advance(index)
    stats = activations.collect(block)
    if "streams" in quantizer.needs and block.name:
        block.streams = activations.streams(block)
    return stats


def _in_turn(block: Block, quantizer: Quantizer) -> bool:
    """Whether the layers of a block are quantized one shared input after the other."""
    together = {"cross", "streams"} & quantizer.needs
    return quantizer.in_turn and bool(block.inputs) and is_decoder_layer(block) and not together


def _quantize_in_turn(
    block: Block, quantizer: Quantizer, activations: Activations, start: float
) -> tuple[dict[str, QuantizedWeight], list[LayerReport]]:
    """`_quantize_block`, one shared input after the other."""
    layers: dict[str, QuantizedWeight] = {}
    reports: list[LayerReport] = []
    for part, stats in activations.collect_in_turn(block):
        made, told = _quantize_block(part, quantizer, stats, start)
        layers |= made
        reports += told
    return layers, reports


@torch.no_grad()
def _quantize_block(
    block: Block, quantizer: Quantizer, stats: dict[str, LinearStats] | None, start: float, *, stays: bool = True
) -> tuple[dict[str, QuantizedWeight], list[LayerReport]]:
    """Quantizes one block; the layers by name inside the block, in order, and their reports.

    Args:
        stats: of its layers; None: they are rounded to the nearest values of their grids.
        start: when work on the block began.
        stays: quantize its layers in place: what is let go of afterwards need not have its new weights.
    """
    # Layer by layer nothing can be folded elsewhere: a weight is given to be read, and with it no block.
    folds = stats is not None and type(quantizer).quantize_block is not Quantizer.quantize_block
    before = {name: each.detach().clone() for name, each in block.module.named_parameters()} if folds else {}
    note = "" if block.name else f"rounded to nearest: {type(quantizer).__name__} works on whole blocks"
    result = rounded(block, note) if stats is None else solved(block, quantizer, stats)
    stats = stats or {name: LinearStats() for name in block.names()}
    block.streams = None
    with one_thread():
        check_result(block, result, type(quantizer).__name__)
    result = {name: replace(result[name], scheme=block.schemes[name]) for name in block.names()}
    moved = {
        name.rpartition(".")[0]
        for name, parameter in block.module.named_parameters()
        if folds and not torch.equal(parameter, before[name])
    }
    errors: dict[str, float | None] = {}
    for group in block.inputs:
        folded = input_scale(block, group, before) if group.before in moved else None
        for name in group.names:
            with one_thread():
                w_hat = grid_of(block.schemes[name]).decode_layer(result[name])
            weight = block.linear(name).weight.float()
            hessian = stats[name].hessian if stats[name].tokens else None
            if folded is not None and hessian is not None:
                hessian = hessian / folded / folded[:, None]
            unknown = group.before in moved and folded is None
            errors[name] = None if unknown else relative_error(weight, w_hat, hessian)
            if stays:
                block.linear(name).weight.copy_(w_hat)  # no other group looks at it
    for name, parameter in block.module.named_parameters():
        if name.rpartition(".")[0] in moved and not torch.isfinite(parameter).all():
            raise NumericsError(
                f"{type(quantizer).__name__} left values that are not finite in {block.full_name(name)}."
            )
    seconds = round(time.perf_counter() - start, 3)
    reports = [
        LayerReport(
            name=block.full_name(name),
            out_features=layer.codes.shape[0],
            in_features=layer.codes.shape[1],
            bits=stored_bits(block.schemes[name], layer.codes.shape[1]),
            error=errors[name],
            seconds=seconds,
            note=layer.note,
        )
        for name, layer in result.items()
    ]
    return result, reports


def solved(block: Block, quantizer: Quantizer, stats: dict[str, LinearStats]) -> dict[str, QuantizedWeight]:
    """What a quantizer makes of a block; experts that no token was sent to are rounded to the nearest instead."""
    unseen = [group for group in block.inputs if quantizer.needs and not stats[group.names[0]].tokens]
    if not unseen:
        return dict(quantizer.quantize_block(block, stats))
    seen = replace(block, inputs=[group for group in block.inputs if group not in unseen])
    result = dict(quantizer.quantize_block(seen, {name: stats[name] for name in seen.names()})) if seen.inputs else {}
    check_result(seen, result, type(quantizer).__name__)
    return result | rounded(replace(block, inputs=unseen), UNSEEN)


def rounded(block: Block, note: str) -> dict[str, QuantizedWeight]:
    """Every layer on the nearest values of its grid, fitted for the least squared error."""
    made = {}
    for name in block.names():
        grid, weight = grid_of(block.schemes[name]), block.linear(name).weight.float()
        made[name] = grid.quantize_layer(weight, *grid.fit_layer(weight), note)
    return made


def stored_bits(scheme: Scheme, in_features: int) -> float:
    """Bits per weight in a file, with a scale of 16 bits and, unless it is fixed, a zero point per group.

    Whole zero points take as many bits as a code, others 16.
    """
    grid = grid_of(scheme)
    zero = 0 if grid.fixed_zero else scheme.bits if grid.whole_zeros else 16
    return scheme.bits + (16 + zero) * scheme.groups(in_features) / in_features


def check_result(block: Block, result: dict[str, QuantizedWeight], who: str) -> None:
    """Holds a quantizer to its contract.

    Raises:
        PluginError: a layer is missing, too many, or not on the grid.
    """

    def refuse(what: str) -> PluginError:
        where = block.name or HEAD
        return PluginError(f"{who}.quantize_block({where}): {what}.", hint="This is a fault of the plugin.")

    names = block.names()
    if set(result) != set(names):
        raise refuse(f"returned {sorted(result)}; expected {sorted(names)}")
    for name in names:
        layer, shape = result[name], tuple(block.linear(name).weight.shape)
        if not isinstance(layer, QuantizedWeight):
            raise refuse(f"{name}: is {type(layer).__name__}; expected rqat.QuantizedWeight")
        scheme = block.schemes[name]
        grid, groups = grid_of(scheme), (shape[0], scheme.groups(shape[1]))
        whole = torch.uint8 if grid.whole_zeros else torch.float32
        for part in ("codes", "scale", "zero"):
            if not isinstance(given := getattr(layer, part), torch.Tensor):
                raise refuse(f"{name}: {part} is {given!r:.60}; expected a tensor")
        if layer.codes.dtype != torch.uint8 or tuple(layer.codes.shape) != shape:
            raise refuse(f"{name}: codes are {layer.codes.dtype} {tuple(layer.codes.shape)}; expected uint8 {shape}")
        if layer.zero.dtype != whole or tuple(layer.zero.shape) != groups:
            wanted = str(whole).removeprefix("torch.")
            raise refuse(f"{name}: zero is {layer.zero.dtype} {tuple(layer.zero.shape)}; expected {wanted} {groups}")
        if layer.scale.dtype != torch.float32 or tuple(layer.scale.shape) != groups:
            raise refuse(f"{name}: scale is {layer.scale.dtype} {tuple(layer.scale.shape)}; expected float32 {groups}")
        if max(int(layer.codes.max()), int(layer.zero.max()) if grid.whole_zeros else 0) > scheme.max_code:
            raise refuse(f"{name}: codes or zero points exceed {scheme.max_code}")
        if not bool(torch.isfinite(layer.zero.float()).all()):
            raise refuse(f"{name}: a zero point is not finite")
        if grid.uniform and scheme.symmetric and not bool((layer.zero == scheme.middle).all()):
            raise refuse(f"{name}: zero points are not {scheme.middle}, as the symmetric grid has it")
        if not torch.equal(grid.snap(layer.scale), layer.scale):
            raise refuse(
                f"{name}: scales are not positive values that bfloat16 and float16 hold (see Grid.snap, snap_scale)"
            )
