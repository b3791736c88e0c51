"""Which linear layers of a model are quantized. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from ..errors import ModelError, nearest
from ..scheme import Schemes
from .families import LLAMA

HEAD = LLAMA.head
"""The output head, as patterns name it: quantized only where a pattern of the schemes does."""

EMBEDDING = LLAMA.embeddings
"""Left as it is in any case; a `skip` pattern may name it, and the head."""


def choose_layers(
    linears: Mapping[str, tuple[int, int]],
    schemes: Schemes,
    *,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
    head: tuple[int, int] | None = None,
) -> list[str]:
    """The layers to quantize, in the order of `linears`; last the head, where a pattern names it and no layer.

    Args:
        linears: `(O, I)` by full name.
        head: `(V, hidden)` of the output head; None where it is tied to the embedding.
        skip: shell patterns on full names of layers to leave as they are.
        indivisible: what to do with layers whose input features do not split into whole groups.

    Raises:
        ModelError: such layers are there and `indivisible` is "error" (every one is listed); a pattern matches no
            layer; the head is named and tied; nothing is left.
    """
    _check_patterns(linears, schemes)
    if names_head(linears, schemes) and not any(fnmatchcase(HEAD, pattern) for pattern in skip):
        if head is None:
            raise ModelError(
                f"scheme: '{schemes.pattern_of(HEAD)}' names the output head, which is tied to the embedding: "
                "quantizing the two together is not supported.",
                hint="Leave it out; both stay as they are.",
            )
        linears = {**linears, HEAD: head}
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in (*linears, HEAD, EMBEDDING)):
            raise ModelError(
                f"quantize.skip: '{pattern}' matches no linear layer of the model.",
                hint=f"Patterns are matched against full names such as '{next(iter(linears), '')}'.",
            )
    kept = [name for name in linears if not any(fnmatchcase(name, pattern) for pattern in skip)]
    whole = [name for name in kept if schemes.of(name).divides(linears[name][1])]
    if indivisible == "error" and len(whole) < len(kept):
        bad = [name for name in kept if not schemes.of(name).divides(linears[name][1])]
        sizes = " and ".join(map(str, dict.fromkeys(schemes.of(name).group for name in bad)))
        listed = ", ".join(f"{name} {linears[name]}" for name in bad)
        raise ModelError(
            f"{len(bad)} layers have input features that groups of {sizes} do not divide: {listed}.",
            hint=_fitting(linears[name][1] for name in kept) + "or set quantize.indivisible: skip.",
        )
    if not whole:
        raise ModelError("No layer is left to quantize.", hint="Check quantize.skip and the group size of the scheme.")
    return whole


def names_head(linears: Iterable[str], schemes: Schemes) -> bool:
    """Whether a pattern is meant for the head: it matches it, and none of the blocks' layers."""
    names = list(linears)
    return any(
        fnmatchcase(HEAD, pattern) and not any(fnmatchcase(name, pattern) for name in names)
        for pattern, _ in schemes.patterns
    )


def _check_patterns(linears: Iterable[str], schemes: Schemes) -> None:
    """Refuses patterns that match no layer: they would be without effect, and nobody would be told."""
    names = [*linears, HEAD]
    for pattern, _ in schemes.patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        if fnmatchcase(EMBEDDING, pattern):
            raise ModelError(f"scheme: '{pattern}' names the embedding, which is not quantized.", hint="Leave it out.")
        last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        start, _, end = pattern.rpartition(".")
        near = nearest(end, last)
        hint = f"Did you mean '{f'{start}.' if start else ''}{near}'? " if near else ""
        raise ModelError(
            f"scheme: '{pattern}' matches no linear layer of the model.",
            hint=f"{hint}Layers end in {', '.join(last)}.",
        )


def _fitting(widths: Iterable[int]) -> str:
    """A hint that names the usual group sizes which divide all of `widths`."""
    distinct = set(widths)
    sizes = [str(size) for size in (128, 64, 32, 16, 8) if all(width % size == 0 for width in distinct)]
    return (
        f"Use a group of {', '.join(sizes)}, one scale per row (-row), " if sizes else "Use one scale per row (-row), "
    )
