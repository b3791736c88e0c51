"""A budget of bytes for a whole model: how it is spelled, who shares a width, and which widths cost the least.

420MB      bytes of the file with the weights, in powers of ten; also kB, GB, and KiB, MiB, GiB in powers of two
2.8bits    bits per parameter in all; a number without a unit means this
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .errors import RqatError
from .model.families import Layout
from .model.layers import EMBEDDING, ENDS, HEAD, choose_layers, is_skipped
from .scheme import Scheme, Schemes

UNQUANTIZED = 16
"""Among the widths of embedding and head: it stays as it is."""

FORM = "Write bytes (420MB, 1.2GB) or bits per parameter in all (2.8bits)."

_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}

Unit = tuple[str, ...]
"""Full names of layers that get one width: those that read one input, or a single one."""


def budget_bytes(text: str, parameters: int) -> int:
    """Bytes of a spelled budget for a model with so many parameters.

    Raises:
        RqatError: it is spelled otherwise, or nothing.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = found[2].lower() if found else ""
    if found is None or (unit not in _BYTES and unit not in ("", "bit", "bits")) or not float(found[1]):
        raise RqatError(f"'{text}' is not a size.", hint=FORM)
    bits = 8 * _BYTES[unit] if unit in _BYTES else parameters
    return int(float(found[1]) * bits / 8)


@dataclass(frozen=True)
class Offer:
    """Which widths there are to choose from, for which layers.

    Attributes:
        by_width: for every width the scheme of every layer that may get it, by full name.
        pinned: layers whose scheme a pattern says, by full name.
        units: what gets one width together: the embedding, the layers of the blocks, the head.
    """

    by_width: Mapping[int, Mapping[str, Scheme]]
    pinned: Mapping[str, Scheme]
    units: Sequence[Unit]

    def widths(self, unit: Unit) -> list[int]:
        """The widths a unit may get, ascending; for the ends `UNQUANTIZED` is one of them where it is offered."""
        return [bits for bits, known in sorted(self.by_width.items()) if unit[0] in known]

    def mapping(self, widths: Mapping[Unit, int]) -> dict[str, Scheme]:
        """The scheme of every quantized layer once every unit has its width."""
        free = {
            name: self.by_width[bits][name] for unit, bits in widths.items() for name in unit if bits != UNQUANTIZED
        }
        return dict(self.pinned) | free

    def sketch(self) -> dict[str, Scheme]:
        """A model in which every width occurs, for checks before the choice is made: all that may become of it."""
        widths = {}
        for place, unit in enumerate(self.units):
            own = self.widths(unit)
            widths[unit] = own[0] if unit[0] in ENDS else own[place % len(own)]
        return self.mapping(widths)

    def refusal(
        self, size: str, asked: int, span: tuple[int, int], parameters: int, within: str = ""
    ) -> RqatError | None:
        """Why a budget cannot be had; None where it can.

        Args:
            size: the budget as it is spelled; `asked` are its bytes.
            span: bytes of the smallest and of the largest file.
            within: of which format the bytes are.
        """
        low, high = span
        if not self.units:
            text = f"no width is left to choose for {size}: the scheme's patterns say that of every layer."
            return RqatError(text, hint="Leave out a pattern, or set no budget.")
        if low <= asked <= high:
            return None
        form = f" in '{within}'" if within else ""
        text = f"{size} cannot be had of this model with these widths{form}: {between(low, high, parameters)}."
        if low == high and within and any(len(self.widths(unit)) > 1 for unit in self.units):
            fix = "Choose another; a recipe with `export: null` counts widths as they are spelled."
            return RqatError(f"{text} That format takes as much for every width.", hint=fix)
        fix = "Ask for more, or offer narrower widths." if asked < low else "Ask for less, or set no budget."
        return RqatError(text, hint=fix)


def between(low: int, high: int, parameters: int) -> str:
    """The two bounds of a budget, in bytes and in bits per parameter."""
    ends = [f"{count / 1e6:.2f}MB ({8 * count / parameters:.2f}bits)" for count in (low, high)]
    return f"only {ends[0]} is possible" if low == high else f"between {' and '.join(ends)} are possible"


def at_width(scheme: Schemes, bits: int, ends: Sequence[str] = ()) -> Schemes:
    """Schemes whose default has another width; `ends` are named beside what patterns say.

    Args:
        bits: a width that schemes have.
    """
    default = Scheme.model_validate(scheme.default.model_dump() | {"bits": bits})
    return Schemes(default=default, patterns=(*scheme.patterns, *((name, default) for name in ends)))


def offer(
    scheme: Schemes,
    widths: Sequence[int],
    ends: Sequence[int],
    embedding: bool,
    *,
    linears: Mapping[str, tuple[int, int]],
    end_shapes: Mapping[str, tuple[int, int]],
    layout: Layout,
    blocks: int,
    skip: Sequence[str] = (),
    indivisible: str = "error",
    together: bool = True,
) -> Offer:
    """What a budget may choose from; layers that patterns of the schemes name have theirs.

    Args:
        widths, ends: those offered to the layers of the blocks, and to embedding and head.
        embedding: the file packs an embedding; else that stays as it is.
        linears, end_shapes, skip, indivisible: see `layers.choose_layers`.
        together: layers that read one input get one width, else each its own.

    Raises:
        ModelError: see `layers.choose_layers`.
    """

    def chosen(schemes: Schemes) -> dict[str, Scheme]:
        policy = "skip" if indivisible == "skip" else "error"
        return choose_layers(linears, schemes, skip=skip, indivisible=policy, ends=end_shapes)  # type: ignore[arg-type]

    own = chosen(scheme)
    pinned = {name: one for name, one in own.items() if name not in linears or scheme.pattern_of(name) is not None}
    # Of a tied pair the file holds the embedding alone, or what such a format writes in its place.
    loose = [name for name in end_shapes if name not in own and (embedding or name != EMBEDDING)]
    loose = [] if {*ends} == {UNQUANTIZED} else [name for name in loose if not is_skipped(name, skip)]
    by_width: dict[int, dict[str, Scheme]] = {}
    for bits in sorted({*widths, *(ends if loose else ())} - {UNQUANTIZED}):
        found = chosen(at_width(scheme, bits, loose if bits in ends else ()))
        by_width[bits] = {
            name: one
            for name, one in found.items()
            if name not in pinned and (bits in widths if name in linears else True)
        }
    if loose and UNQUANTIZED in ends:
        by_width[UNQUANTIZED] = dict.fromkeys(loose, scheme.default)
    known = {name for own in by_width.values() for name in own}
    shared = [
        tuple(f"{layout.block(index)}.{name}" for name in group.names)
        for index in range(blocks)
        for group in layout.inputs
    ]
    if not together:
        shared = [(name,) for unit in shared for name in unit]
    units = [tuple(name for name in unit if name in known) for unit in [(EMBEDDING,), *shared, (HEAD,)]]
    return Offer(by_width, pinned, [unit for unit in units if unit])


@dataclass(frozen=True)
class Choice:
    """One width of a unit: what it takes, and what it costs.

    Attributes:
        bits: the width.
        bytes: of the unit in the file.
        kl: nats per token that the model moves by.
    """

    bits: int
    bytes: int
    kl: float


def allot(options: Mapping[Unit, Sequence[Choice]], room: int, apart: Sequence[Unit] = ()) -> dict[Unit, Choice]:
    """A width for every unit, such that all take at most `room` bytes and the sum of what they cost is small.

    Upgrades are bought in the order of what a byte of them saves, along the lower convex hull of every unit; what is
    left at the end goes to those that still fit. That is at most one upgrade away from the best there is, so every
    combination of the few large units (`apart`) is tried beside it.

    Raises:
        RqatError: the smallest of every unit takes more than `room`.
    """
    best: tuple[float, int, dict[Unit, Choice]] | None = None
    rest = {unit: own for unit, own in options.items() if unit not in apart}
    for combination in itertools.product(*(options[unit] for unit in apart)):
        left = room - sum(choice.bytes for choice in combination)
        found = _greedy(rest, left)
        if found is None:
            continue
        whole = dict(zip(apart, combination, strict=True)) | found
        rank = (sum(choice.kl for choice in whole.values()), -sum(choice.bytes for choice in whole.values()))
        if best is None or rank < best[:2]:
            best = (*rank, whole)
    if best is None:
        raise RqatError(f"{room} bytes are less than the smallest widths take.")
    return {unit: best[2][unit] for unit in options}


def _greedy(options: Mapping[Unit, Sequence[Choice]], room: int) -> dict[Unit, Choice] | None:
    """`allot` without units apart; None where nothing fits."""
    hulls = {unit: hull(own) for unit, own in options.items()}
    chosen = {unit: own[0] for unit, own in hulls.items()}
    left = room - sum(choice.bytes for choice in chosen.values())
    if left < 0:
        return None
    order = list(options)
    queue = [(-_saves(own[0], own[1]), order.index(unit), 1) for unit, own in hulls.items() if len(own) > 1]
    heapq.heapify(queue)
    while queue:
        _, index, place = heapq.heappop(queue)
        own = hulls[order[index]]
        more = own[place].bytes - own[place - 1].bytes
        if more > left:
            continue
        chosen[order[index]] = own[place]
        left -= more
        if place + 1 < len(own):
            heapq.heappush(queue, (-_saves(own[place], own[place + 1]), index, place + 1))
    while fitting := [
        (_saves(chosen[unit], choice), unit, choice)
        for unit, own in options.items()
        for choice in own
        if chosen[unit].bytes < choice.bytes <= chosen[unit].bytes + left and choice.kl < chosen[unit].kl
    ]:
        _, unit, choice = max(fitting, key=lambda each: each[0])
        left -= choice.bytes - chosen[unit].bytes
        chosen[unit] = choice
    return chosen


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """Those on the lower convex hull of bytes and cost, from the smallest to the cheapest."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.bytes, each.kl)):
        if found and choice.kl >= found[-1].kl:
            continue
        while len(found) > 1 and _saves(found[-2], found[-1]) <= _saves(found[-2], choice):
            found.pop()
        found.append(choice)
    return found


def _saves(now: Choice, then: Choice) -> float:
    """What a byte of an upgrade saves."""
    return (now.kl - then.kl) / max(1, then.bytes - now.bytes)


def bounds(
    offered: Offer,
    shapes: Mapping[str, tuple[int, int]],
    parameters: int,
    per_weight: Callable[[Scheme, int], float],
    beside: int = 0,
) -> tuple[int, int]:
    """Bytes of the smallest and of the largest model that an offer allows; what is not quantized has 16 bits.

    Args:
        shapes: `(O, I)` of every layer and of the ends.
        parameters: of the whole model.
        per_weight: bits per weight of a scheme, for a layer of so many input features; see `contracts.options.in_file`.
        beside: bytes of the file that are no weights.
    """
    spans = []
    for unit in offered.units:
        of = [
            sum(
                math.prod(shapes[name])
                * (UNQUANTIZED if bits == UNQUANTIZED else per_weight(offered.by_width[bits][name], shapes[name][1]))
                for name in unit
            )
            for bits in offered.widths(unit)
        ]
        spans.append((min(of), max(of)))
    counted = {*offered.pinned, *(name for unit in offered.units for name in unit)}
    rest: float = 8 * beside + UNQUANTIZED * (parameters - sum(math.prod(shapes[name]) for name in counted))
    rest += sum(
        math.prod(shapes[name]) * per_weight(scheme, shapes[name][1]) for name, scheme in offered.pinned.items()
    )
    smallest, largest = ((rest + sum(span[end] for span in spans)) / 8 for end in (0, 1))
    return math.ceil(smallest), math.ceil(largest)
