"""How far the model's predictions move when some layers are quantized: estimated for each alone, measured for many.

To second order the divergence KL(original || quantized) that an error in a layer's outputs makes is half the expected
square of what it changes the log-likelihood by, for tokens that the model itself would write. One is drawn for every
place of the text; their gradients come from one pass back, and the error of every width is held against them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..storage import read_json, write_json
from .activations import Activations, TokenBatch
from .families import layout_of
from .layers import ENDS
from .tries import Tries

if TYPE_CHECKING:
    import transformers

KEPT_LOGITS = 1 << 28
"""Logits of the original that are kept in 16 bits, at most: with more places in the text, only some are compared."""

Unit = tuple[str, ...]
"""Full names of layers that get one width: those that read one input, or a single one."""


def second_order(
    model: transformers.PreTrainedModel,
    decoder: Sequence[tuple[str, nn.Module]],
    units: Sequence[Unit],
    batches: Sequence[TokenBatch],
    tries: Tries,
) -> dict[Unit, dict[int, float]]:
    """Nats per token that every unit of decoder layers would cost alone, by width.

    Args:
        decoder: the decoder layers by full name.
        batches: text that no statistics were taken from.
    """
    widths = {unit: [bits for bits, known in tries.schemes.items() if unit[0] in known] for unit in units}
    sums = {unit: torch.zeros(len(widths[unit]), dtype=torch.float64) for unit in units}
    tokens = 0

    @contextmanager
    def around(number: int, part: slice) -> Iterator[None]:
        nonlocal tokens
        batch = batches[number]
        ids = batch.input_ids[part]
        tokens += int(ids.numel() if batch.attention_mask is None else batch.attention_mask[part].sum())
        moved: dict[Unit, Tensor] = {}
        with _watched(model, units, widths, tries, moved):
            yield
        for unit, change in moved.items():
            sums[unit] += change.double().square().flatten(0, -2).sum(0).cpu() / 2

    Activations(model, decoder, batches).send_back(model, around)
    return {unit: dict(zip(widths[unit], (own / max(1, tokens)).tolist(), strict=True)) for unit, own in sums.items()}


@contextmanager
def _watched(
    model: transformers.PreTrainedModel,
    units: Sequence[Unit],
    widths: Mapping[Unit, Sequence[int]],
    tries: Tries,
    moved: dict[Unit, Tensor],
) -> Iterator[None]:
    """Adds what every width would change a token's log-likelihood by to `moved`: `(B, T, widths)` for every unit.

    Of an expert `(N, widths)`, for the tokens that were sent to it.
    """

    def hook(unit: Unit, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def watch(module: nn.Module, given: Any, out: Tensor) -> None:
            if not out.requires_grad:
                return
            x = given[0].detach()

            def add(gradient: Tensor) -> None:
                weight = model.get_parameter(f"{name}.weight").detach().float()
                for place, bits in enumerate(widths[unit]):
                    delta = tries.weight(name, bits, weight.device) - weight
                    change = ((x.float() @ delta.T) * gradient.float()).sum(-1)
                    if unit not in moved:
                        moved[unit] = torch.zeros(*change.shape, len(widths[unit]), device=change.device)
                    moved[unit][..., place] += change

            out.register_hook(add)

        return watch

    handles = [model.get_submodule(name).register_forward_hook(hook(unit, name)) for unit in units for name in unit]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Divergence:
    """KL(original || model) in nats per token over some text; made while the model is the original.

    Args:
        batches: the text; padding is left out.
    """

    @torch.inference_mode()
    def __init__(self, model: transformers.PreTrainedModel, batches: Sequence[TokenBatch]) -> None:
        self._model = model
        places = sum(batch.input_ids.numel() for batch in batches)
        vocabulary = model.get_output_embeddings().weight.shape[0]
        every = max(1, -(-places * vocabulary // KEPT_LOGITS))
        self._rows = [row for batch in batches for row in _rows(batch, every)]
        self._original = [self._logits(*row).half() for row in self._rows]

    @torch.inference_mode()
    def __call__(self) -> float:
        """Of the model as it is now."""
        total, count = 0.0, 0
        for row, original in zip(self._rows, self._original, strict=True):
            log_p, log_q = (one.float().log_softmax(-1) for one in (original, self._logits(*row)))
            total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
            count += len(log_p)
        return total / max(1, count)

    def _logits(self, ids: Tensor, places: Tensor) -> Tensor:
        """`(P, V)` at some places of one sequence `(1, T)`."""
        model: Any = self._model
        device = next(model.parameters()).device
        found: Tensor = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=places.to(device)).logits[0]
        return found


def _rows(batch: TokenBatch, every: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sequence of a batch, without padding, with the places in it that are compared."""
    for index, ids in enumerate(batch.input_ids):
        length = len(ids) if batch.attention_mask is None else int(batch.attention_mask[index].sum())
        yield ids[None, :length], torch.arange(every - 1, length, every)


def measure(
    model: transformers.PreTrainedModel,
    units: Sequence[Unit],
    batches: Sequence[TokenBatch],
    tries: Tries,
    widths: Callable[[Unit], Sequence[int]],
    kept: Path,
    *,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[Unit, dict[int, float]]:
    """Nats per token that every width of every unit costs: estimated in the blocks, measured for embedding and head.

    Args:
        model: as it is before quantization.
        units: those whose layers get one width.
        batches: text that no statistics were taken from.
        widths: which are offered to a unit; one that was not tried costs nothing.
        kept: file of what was found so far, from which an interrupted measuring goes on.
        progress: told the share of the work that is done.
    """
    found: dict[str, dict[str, float]] = read_json(kept) or {}
    layout = layout_of(model.config)
    places = [layout.block(index) for index in range(model.config.num_hidden_layers)]
    inside = [unit for unit in units if unit[0] not in ENDS]
    if not all(unit[0] in found for unit in inside):
        decoder = [(name, model.get_submodule(name)) for name in places]
        costs = second_order(model, decoder, inside, batches, tries)
        found |= {unit[0]: {str(bits): kl for bits, kl in own.items()} for unit, own in costs.items()}
        write_json(kept, found)
    ends = [(unit[0], bits) for unit in units if unit[0] in ENDS for bits in widths(unit)]
    left = [(name, bits) for name, bits in ends if str(bits) not in found.setdefault(name, {})]
    progress(1 / (1 + len(left)))
    divergence = Divergence(model, batches) if left else None
    for done, (name, bits) in enumerate(left, 2):
        cost = 0.0
        if divergence is not None and bits in tries.schemes:
            with tries.put_in(model, {name: bits}):
                cost = divergence()
        found[name][str(bits)] = cost
        write_json(kept, found)
        progress(done / (1 + len(left)))
    return {unit: {int(bits): kl for bits, kl in found[unit[0]].items()} for unit in units}
