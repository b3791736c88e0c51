"""Which layers of a model are quantized, and how. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from ..contracts import ModelShape
from ..errors import ModelError, nearest
from ..scheme import Scheme, Schemes
from .families import LLAMA

if TYPE_CHECKING:
    from .config import ModelConfig

HEAD = LLAMA.head
"""The output head, as patterns name it."""

EMBEDDING = LLAMA.embeddings
"""The embedding of tokens; patterns may call it `embed_tokens`, too. A tied pair of the two ends is called so."""

ENDS = (EMBEDDING, HEAD)
"""The model's two ends: quantized only where a pattern of the schemes names them."""


def choose_layers(
    linears: Mapping[str, tuple[int, int]],
    schemes: Schemes,
    *,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
    ends: Mapping[str, tuple[int, int]],
) -> dict[str, Scheme]:
    """The layers to quantize with their schemes: the embedding if it is named, `linears` in their order, the head.

    Args:
        linears: `(O, I)` by full name.
        ends: `(V, hidden)` of those of `ENDS` that have a weight of their own: of a tied pair the embedding alone.
        skip: shell patterns on full names of layers to leave as they are.
        indivisible: what to do with layers whose input features do not split into whole groups.

    Raises:
        ModelError: such layers are there and `indivisible` is "error"; a pattern matches no
            layer; a tied pair is given two schemes; nothing is left.
    """
    _check_patterns(linears, schemes)
    for pattern in skip:
        if not any(_matches(name, pattern) for name in (*linears, *ENDS)):
            raise ModelError(
                f"quantize.skip: '{pattern}' matches no linear layer of the model.",
                hint=f"Patterns are matched against full names such as '{next(iter(linears), '')}'.",
            )
    named = _named_ends(linears, schemes, ends, skip)
    shapes = {name: ends[name] for name in named} | dict(linears)
    if HEAD in named:  # behind the blocks
        shapes[HEAD] = shapes.pop(HEAD)
    found = {name: named.get(name) or schemes.of(name) for name in shapes}
    kept = [name for name in shapes if name in named or not is_skipped(name, skip)]
    whole = [name for name in kept if found[name].divides(shapes[name][1])]
    if indivisible == "error" and len(whole) < len(kept):
        bad = [name for name in kept if name not in whole]
        sizes = " and ".join(map(str, dict.fromkeys(found[name].group for name in bad)))
        raise ModelError(
            f"scheme: {len(bad)} layers have input features that groups of {sizes} do not divide: "
            f"{listed({name: shapes[name] for name in bad})}.",
            hint=_fitting(shapes[name][1] for name in kept) + "or set quantize.indivisible: skip.",
        )
    if not whole:
        raise ModelError("No layer is left to quantize.", hint="Check quantize.skip and the group size of the scheme.")
    return {name: found[name] for name in whole}


FEW = 2
"""Layers of one kind and shape that are named one by one; of more, a pattern."""


def kind_of(name: str) -> str:
    """The pattern for a layer of this kind in any block, as `skip` takes it: `*.down_proj`."""
    return re.sub(r"^.*\.\d+\.(.*\.)?", "*.", name)


def listed(shapes: Mapping[str, tuple[int, int]]) -> str:
    """Layers with their shapes; those of many blocks as patterns, as `skip` takes them, with their number."""
    kinds: dict[tuple[str, int], list[str]] = {}
    for name, (_, width) in shapes.items():
        kinds.setdefault((kind_of(name), width), []).append(name)
    told, many = list[str](), dict[tuple[int, int], list[str]]()
    for (pattern, width), names in kinds.items():
        if len(names) > FEW:
            many.setdefault((len(names), width), []).append(pattern)
        else:
            told += [f"{name} {shapes[name]}" for name in names]
    for (count, width), patterns in many.items():
        told.append(f"{count}{' each' if patterns[1:] else ''} of {', '.join(patterns)} ({width} input features)")
    return ", ".join(told)


def _named_ends(
    linears: Iterable[str], schemes: Schemes, ends: Mapping[str, tuple[int, int]], skip: Sequence[str]
) -> dict[str, Scheme]:
    """The schemes of the ends that patterns mean, and `skip` does not: patterns that match none of `linears`.

    Either name of a tied pair means the pair.

    Raises:
        ModelError: the two names of a tied pair have two schemes.
    """
    others = list(linears)
    meant = [pair for pair in schemes.patterns if not any(fnmatchcase(name, pair[0]) for name in others)]
    found: dict[str, Scheme] = {}
    for name in ENDS:
        matching = [pair for pair in meant if _matches(name, pair[0])]
        if matching:  # the longest pattern, of equally long ones the last, as for every layer
            found[name] = max(reversed(matching), key=lambda pair: len(pair[0]))[1]
    tied = HEAD not in ends
    if tied and len(set(found.values())) > 1:
        text = " and ".join(f"{scheme} for {name}" for name, scheme in found.items())
        raise ModelError(
            f"scheme: {text}, but the model's head is tied to its embedding: the two are one weight.",
            hint="Give both the same scheme, or name only one of them.",
        )
    left = {name for name in ENDS if is_skipped(name, skip)}
    if tied:
        return {EMBEDDING: next(iter(found.values()))} if found and not left else {}
    return {name: scheme for name, scheme in found.items() if name in ends and name not in left}


def _check_patterns(linears: Iterable[str], schemes: Schemes) -> None:
    """Refuses patterns that match no layer: they would be without effect, and nobody would be told."""
    names = [*linears, *ENDS]
    for pattern, _ in schemes.patterns:
        if any(_matches(name, pattern) for name in names):
            continue
        last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        start, _, end = pattern.rpartition(".")
        near = nearest(end, last)
        hint = f"Did you mean '{f'{start}.' if start else ''}{near}'? " if near else ""
        raise ModelError(
            f"scheme: '{pattern}' matches no linear layer of the model.",
            hint=f"{hint}Layers end in {', '.join(last)}.",
        )


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a layer's full name; an end's last part will do."""
    return fnmatchcase(name, pattern) or (name in ENDS and fnmatchcase(_short(name), pattern))


def is_skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether a pattern of `quantize.skip` matches a layer or an end."""
    return any(_matches(name, pattern) for pattern in skip)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _fitting(widths: Iterable[int]) -> str:
    """A hint that names the usual group sizes which divide all of `widths`."""
    distinct = set(widths)
    sizes = [str(size) for size in (128, 64, 32, 16, 8) if all(width % size == 0 for width in distinct)]
    return (
        f"Use a group of {', '.join(sizes)}, one scale per row (-row), " if sizes else "Use one scale per row (-row), "
    )


def described(config: ModelConfig, ends: Collection[str] = ENDS) -> ModelShape:
    """What options see of a model that is not loaded.

    Args:
        ends: those of embedding and head that are quantized, or may be.
    """
    return ModelShape(
        name=config.keys.path,
        model_type=config.model_type,
        linears=config.linears | {name: shape for name, shape in config.ends.items() if name in ends},
        hidden=config.hidden,
        vocab=config.vocab,
        blocks=config.blocks,
        tied=config.tied,
        context=config.context,
        config=config.raw,
    )
