"""Which linear layers of a model are quantized. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from ..errors import ModelError
from ..scheme import Scheme
from .families import FAMILIES

NEVER = tuple(
    dict.fromkeys(name for family in FAMILIES.values() for name in (family.layout.head, family.layout.embeddings))
)
"""Modules that are left as they are in any case; a `skip` pattern may name them."""


def choose_layers(
    linears: Mapping[str, tuple[int, int]],
    scheme: Scheme,
    *,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
) -> list[str]:
    """The layers to quantize, in the order of `linears`.

    Args:
        linears: `(O, I)` by full name.
        skip: shell patterns on full names of layers to leave as they are.
        indivisible: what to do with layers whose input features do not split into whole groups.

    Raises:
        ModelError: such layers are there and `indivisible` is "error" (every one is listed); a pattern matches no
            layer; nothing is left.
    """
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in (*linears, *NEVER)):
            raise ModelError(
                f"quantize.skip: '{pattern}' matches no linear layer of the model.",
                hint=f"Patterns are matched against full names such as '{next(iter(linears), '')}'.",
            )
    kept = [name for name in linears if not any(fnmatchcase(name, pattern) for pattern in skip)]
    whole = [name for name in kept if scheme.divides(linears[name][1])]
    if indivisible == "error" and len(whole) < len(kept):
        bad = [f"{name} {linears[name]}" for name in kept if not scheme.divides(linears[name][1])]
        raise ModelError(
            f"{len(bad)} layers have input features that groups of {scheme.group} do not divide: {', '.join(bad)}.",
            hint=_fitting(linears[name][1] for name in kept) + "or set quantize.indivisible: skip.",
        )
    if not whole:
        raise ModelError("No layer is left to quantize.", hint="Check quantize.skip and the group size of the scheme.")
    return whole


def _fitting(widths: Iterable[int]) -> str:
    """A hint that names the usual group sizes which divide all of `widths`."""
    distinct = set(widths)
    sizes = [str(size) for size in (128, 64, 32, 16, 8) if all(width % size == 0 for width in distinct)]
    return (
        f"Use a group of {', '.join(sizes)}, one scale per row (-row), " if sizes else "Use one scale per row (-row), "
    )
