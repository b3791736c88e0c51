"""The grid behind a scheme: `grid_of`, and what stands against a scheme before any work. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from .contracts import Grid, Problem
from .errors import RqatError
from .registry import Card, Registry
from .scheme import Scheme


def grid_of(scheme: Scheme) -> Grid:
    """The grid that a scheme names, of whichever plugin offers it; equal schemes give the same object.

    Raises:
        UnknownName: nobody offers a grid of that name.
        PluginError: its plugin is broken.
    """
    registry = Registry.current()
    return _built(registry.load_class(registry.card("grid", scheme.grid)), scheme)


@cache
def _built(kind: type[Grid], scheme: Scheme) -> Grid:
    return kind(scheme)


def scheme_problems(registry: Registry, scheme: Scheme, where: object = "") -> Iterator[str]:
    """Why no plugin offers the grid of a scheme: no such name, or no such width; one line each.

    Args:
        where: file, line and key the scheme was read from.
    """
    try:
        card = registry.card("grid", scheme.grid, where)
    except RqatError as error:
        yield f"{error} A scheme ends in -sym, -row or the name of a grid."
        return
    if scheme.bits not in card.bits:
        widths = ", ".join(map(str, card.bits))
        place = f"{where}: " if str(where) else ""
        yield f"{place}'{scheme}' asks for {scheme.bits} bits; the grid '{card.name}' has {widths}."


def grid_cards(registry: Registry, schemes: Iterable[Scheme]) -> list[Card]:
    """The cards of the grids that schemes name, each once."""
    return [registry.card("grid", name) for name in dict.fromkeys(scheme.grid for scheme in schemes)]


def has_zeros(scheme: Scheme) -> bool:
    """Whether there are zero points to train: the scheme does not fix them, nor does its grid.

    Raises:
        UnknownName: nobody offers the scheme's grid.
    """
    return not scheme.symmetric and Registry.current().card("grid", scheme.grid).zero_bits != 0


def bits_per_weight(scheme: Scheme) -> float:
    """Stored bits per weight, with a scale and, where the grid has one to store, a zero point per group.

    Raises:
        UnknownName: nobody offers the scheme's grid.
    """
    return scheme.bits_per_weight(Registry.current().card("grid", scheme.grid).zero_bits)


NAMED_BY = {"quantizer": "method", "exporter": "format"}
"""Kinds of parts that a grid has to suit, and the recipe's key that names the part."""


def part_problems(registry: Registry, card: Card, schemes: Iterable[Scheme]) -> Iterator[Problem]:
    """Why a quantizer cannot fit, or an exporter cannot write, the grids of these schemes."""
    if card.kind not in NAMED_BY or card.grids is None:
        return
    verb = "fit" if card.kind == "quantizer" else "write"
    for scheme in schemes:
        if scheme.grid not in card.grids:
            text = (
                f"'{card.name}' cannot {verb} the grid '{scheme.grid}' of {scheme}; it knows {', '.join(card.grids)}."
            )
            yield Problem(text, _another(registry, card, scheme.grid), NAMED_BY[card.kind])


def _another(registry: Registry, card: Card, grid: str) -> str:
    """What to do where a part does not know a grid."""
    others = [one.name for one in registry.cards(card.kind) if one.grids is None or grid in one.grids]
    if others:
        return f"Use {' or '.join(others)}, or another scheme."
    if card.kind == "exporter":
        return "No format holds it: set `export: null`; `rqat eval` and `rqat generate` take a step's own folder."
    return "Use another scheme."


def cost_notes(registry: Registry, schemes: Iterable[Scheme]) -> Iterator[Problem]:
    """What training on grids without kernels of their own costs."""
    for card in grid_cards(registry, schemes):
        if card.slower > 1:
            cost = f"on a GPU an optimizer step takes about {card.slower:g} times as long"
            yield Problem(f"the grid '{card.name}' has no kernels of its own: {cost}.", level="note")
