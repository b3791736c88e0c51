"""Calibration without a recipe: rows, texts or a source that `rqat.quantize` is given, as token batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...cards import Card
from ...contracts import Options, Row, Source
from ...errors import DataError, ModelError, RecipeError
from ...generation.sampling import context_length
from ...model.activations import TokenBatch
from ...registry import Registry, parts_of
from .. import keys_of
from ..quantize.run import batches_of
from . import CalibrationKeys
from .run import Counted, calibration_tokens

if TYPE_CHECKING:
    import transformers

Calibration = str | Mapping[str, Any] | Iterable[Row | str]
"""Rows or texts; or a source, spelled as in a recipe: its name, or a mapping with `source`, its options, `samples`,
`tokens`, `pack`, `split` and `seed`. With `rows` in place of `source` the mapping says how rows become sequences."""


@dataclass(frozen=True)
class Given:
    """What was given, read as often as it is asked for.

    Attributes:
        keys: how rows become sequences.
        rows: all of them, from the first on.
    """

    keys: CalibrationKeys
    rows: Callable[[], Iterable[Row]]

    def batches(self, tokenizer: transformers.PreTrainedTokenizerBase, device: str) -> list[TokenBatch]:
        """The tokens a quantizer's statistics are taken from.

        Raises:
            DataError: there are too few rows.
        """
        return batches_of(*calibration_tokens(Counted(self.rows()), tokenizer, self.keys), device)


def given_text(
    registry: Registry, calibration: Calibration, model: transformers.PreTrainedModel, spare: int = 0
) -> Given:
    """Reads the argument `calibration`.

    Args:
        spare: of rows without a number of `samples`, so many are not calibrated on.

    Raises:
        RecipeError: a key or an option is wrong; the source writes its rows with the model, in a step of a recipe.
        ModelError: the sequences are longer than the model's context.
    """
    context = context_length(model)
    if isinstance(calibration, (str, Mapping)):
        spelled = {"source": calibration} if isinstance(calibration, str) else dict(calibration)
    else:
        spelled = {"rows": calibration, "pack": False, "tokens": min(512, context)}
    if "rows" in spelled:
        rows = _rows(spelled.pop("rows"))
        keys = keys_of("calibration", {"source": "rows", "samples": max(1, len(rows) - spare), **spelled})
        found = Given(keys, lambda: rows)
    else:
        keys = keys_of("calibration", spelled)
        card = registry.card("source", keys.source)
        options = registry.options(card, keys.options, "calibration")
        for name in _asking(registry, card, options):
            raise RecipeError(
                f"calibration: '{name}' writes its rows with the model, which a recipe has a step for.",
                hint="Run `rqat qat` with a recipe that names it, or give rows of your own.",
            )
        source: Source = registry.make(card, options)
        found = Given(keys, lambda: source.rows(keys.split, keys.seed))
    if keys.tokens > context:
        raise ModelError(
            f"calibration: {keys.tokens} tokens are more than the {context} of the model's context.",
            hint=f"Set tokens to {context} or less.",
        )
    return found


def _rows(given: Any) -> list[Row]:
    """Rows, or texts as rows."""
    if not isinstance(given, Iterable):
        raise RecipeError(f"calibration: {given!r} is neither rows nor a source.", hint="Give a list of texts or rows.")
    rows: list[Any] = [{"text": row} if isinstance(row, str) else row for row in given]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"calibration: row {number} is {row!r:.60}, neither a text nor a row.",
                hint='Write texts, or rows such as {"prompt": ..., "completion": ...}.',
            )
    return rows


def _asking(registry: Registry, card: Card, options: Options) -> Iterator[str]:
    """Names of the sources, at any depth, that ask for the model."""
    if card.model:
        yield card.name
    for _, _, part in parts_of(options):
        inner = registry.card("source", part.source)
        yield from _asking(registry, inner, registry.options(inner, part.options))
