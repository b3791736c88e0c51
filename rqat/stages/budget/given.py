"""A budget without a recipe: what `rqat.quantize` is told of one, and the widths that it chooses for a model in memory.

The same steps as in a run, by the same functions; what is tried is kept in a temporary folder meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cards import Card
from ...contracts import Context, Exporter
from ...errors import RecipeError
from ...job import Silence
from ...model.activations import TokenBatch
from ...model.layers import EMBEDDING
from ...registry import Registry
from ...scheme import Schemes
from .. import keys_of
from ..calibrate.given import Given as Text
from ..measure import MeasureSettings
from ..measure.run import costs_of, held_out
from ..quantize.given import Given as Method
from ..quantize.given import check_grids
from ..quantize.run import named_schemes
from . import BudgetKeys, packs_embedding
from .run import choose
from .weigh import Weigher, offered_of, shape_for

if TYPE_CHECKING:
    import transformers

Size = str | float | Mapping[str, Any]
"""As in a recipe: `"420MB"`, `2.8` bits per parameter in all, or a mapping with `size`, `widths`, `ends`, ..."""


@dataclass(frozen=True)
class Given:
    """What was given.

    Attributes:
        keys: of the budget.
        card, exporter: of the format whose bytes count; None: bits are counted as the schemes say.
    """

    keys: BudgetKeys
    card: Card | None = None
    exporter: Exporter | None = None


def given_budget(
    registry: Registry, budget: Size | None, format: str | Mapping[str, Any] | None, method: Method
) -> Given | None:
    """Reads the arguments `budget` and `format`; None where there is no budget.

    Raises:
        RecipeError: a key or an option is wrong, or a grid has no such width.
        UnknownName: no such format.
    """
    if budget is None:
        if format is not None:
            raise RecipeError(
                f"quantize: format={format!r} says whose bytes a budget counts, and there is none.",
                hint="Give budget= as well, or name the format to rqat.export.",
            )
        return None
    read: BudgetKeys = keys_of("budget", budget if isinstance(budget, Mapping) else {"size": budget})
    if lacking := read.missing_in(registry.card("grid", method.schemes.default.grid)):
        raise RecipeError(f"quantize: budget: {lacking}")
    if format is None:
        return Given(read.of_format(None))
    if not isinstance(format, (str, Mapping)):
        raise RecipeError(f"quantize: format={format!r} names no format.", hint="`rqat plugins ls` lists them.")
    spelled = keys_of("export", {"format": format} if isinstance(format, str) else format)
    card = registry.card("exporter", spelled.format)
    check_grids(registry, card, method.schemes)
    return Given(read.of_format(card), card, registry.make(card, registry.options(card, spelled.options, "format")))


def chosen_widths(
    budget: Given,
    method: Method,
    text: Text,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    batches: list[TokenBatch],
) -> tuple[Schemes, dict[str, Any]]:
    """The scheme of every layer, and how it was found: contents of scheme.json.

    Args:
        text: of the calibration; costs are measured on what stands behind it.
        model: behind its transforms. It is left as it is.
        batches: what the quantizer's statistics are taken from.

    Raises:
        RqatError: the budget is out of bounds; the format cannot hold the widths that may be chosen.
        DataError: there are too few rows.
        ModelError: layers cannot be quantized as asked.
    """
    keys, device = MeasureSettings.of(budget.keys, method.keys, text.keys), str(model.device)
    weigher = _weigher(budget, method, keys, model, tokenizer)
    size = weigher.budget(budget.keys.size, budget.card.name if budget.card else "")
    rows = held_out(text.rows(), tokenizer, keys, device)
    with tempfile.TemporaryDirectory(prefix="rqat-budget-") as kept, _only_read(model):
        costs = costs_of(
            model,
            offered_of(method.schemes, keys, model),
            method.schemes,
            method.quantizer,
            keys,
            batches,
            rows,
            Path(kept),
            device=device,
            progress=Silence(),
        )
    chosen = choose(weigher, size, costs)
    return named_schemes(method.schemes.default, chosen["layers"]), chosen


def _weigher(
    budget: Given,
    method: Method,
    keys: MeasureSettings,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> Weigher:
    """Weighs the files that there may be, once their format is known to hold every width that is offered."""
    offered = offered_of(method.schemes, keys, model, embedding=packs_embedding(budget.card))
    if budget.exporter is not None:
        schemes = offered.sketch()
        if not packs_embedding(budget.card):
            schemes.pop(EMBEDDING, None)
        seen = Context(schemes=schemes, model=shape_for(model, schemes), tokenizer=lambda: tokenizer)
        found = budget.exporter.options.check(seen)
        problems = [f"quantize: format: {each.text} {each.hint}".strip() for each in found if each.level == "error"]
        if problems:
            raise RecipeError(problems)
        return Weigher(model, offered, budget.exporter, budget.exporter.options.bytes_beside(seen))
    return Weigher(model, offered, None)


@contextmanager
def _only_read(model: transformers.PreTrainedModel) -> Iterator[None]:
    """The model in eval mode and without gradients of its weights; afterwards as it was."""
    training, learns = model.training, [each for each in model.parameters() if each.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for each in learns:
            each.requires_grad_(True)
