"""A quantizer without a recipe: what `rqat.quantize` is told of method and scheme, checked and built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...cards import Card
from ...contracts import Quantizer, Transform
from ...errors import RecipeError
from ...grids import part_problems, scheme_problems
from ...registry import Registry
from ...scheme import Schemes
from .. import keys_of
from . import QuantizeKeys


@dataclass(frozen=True)
class Given:
    """What was given.

    Attributes:
        keys: of the quantizer.
        card: the quantizer's.
        schemes: of every layer.
        transforms: name, options and object of each that stands before the quantizer, in order.
    """

    keys: QuantizeKeys
    card: Card
    quantizer: Quantizer
    schemes: Schemes
    transforms: list[tuple[str, dict[str, Any], Transform]]


def given_quantizer(
    registry: Registry,
    method: str | Sequence[str | Mapping[str, Any]],
    scheme: str | Mapping[str, str],
    settings: Mapping[str, Any],
) -> Given:
    """Reads the arguments `method` and `scheme`, and those beside them.

    Args:
        settings: `skip`, `indivisible` and the quantizer's options.

    Raises:
        RecipeError: an option is wrong; the quantizer or nobody knows the grid.
        UnknownName: nobody offers such a part.
        RqatError: a scheme is none.
    """
    *before, last = _methods(method)
    chosen = {"method": last} if isinstance(last, str) else dict(last)
    keys = keys_of("quantize", {**chosen, **settings})
    card = registry.card("quantizer", keys.method)
    quantizer: Quantizer = registry.make(card, registry.options(card, keys.options, "quantize"))
    schemes = Schemes.parse(scheme, where="quantize: scheme")
    check_grids(registry, card, schemes)
    return Given(keys, card, quantizer, schemes, [_transform(registry, one) for one in before])


def check_grids(registry: Registry, card: Card, schemes: Schemes) -> None:
    """Raises `RecipeError` for schemes whose grid nobody offers, or a quantizer or an exporter does not know."""
    different = schemes.different
    problems = [text for one in different for text in scheme_problems(registry, one, "quantize: scheme")]
    problems += [f"quantize: {found.text} {found.hint}" for found in part_problems(registry, card, different)]
    if problems:
        raise RecipeError(problems)


def _methods(given: Any) -> list[Any]:
    """The transforms and the quantizer that `method` names."""
    listed = [given] if isinstance(given, (str, Mapping)) else given
    if not (isinstance(listed, Sequence) and listed and all(isinstance(one, (str, Mapping)) for one in listed)):
        raise RecipeError(
            f"quantize: method={given!r} names no quantizer.", hint='Give a name, or a list: ["rotate", "gptq"].'
        )
    return list(listed)


def _transform(registry: Registry, spelled: str | Mapping[str, Any]) -> tuple[str, dict[str, Any], Transform]:
    """Name, options and object of a transform."""
    keys = keys_of("quantize", {"method": spelled} if isinstance(spelled, str) else spelled)
    card = registry.card("transform", keys.method)
    options = registry.options(card, keys.options, f"quantize: {card.name}")
    return card.full_name, options.model_dump(mode="json"), registry.make(card, options)
