"""What every tensor of a quantized model takes: bits, bytes, and how much less than with 16 bits."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .run_files import RunFiles, StepFiles

DENSE = "model.safetensors"
LONGEST_HEADER = 100 << 20
"""Bytes of a header that are read: that of safetensors itself."""


@dataclass(frozen=True)
class Stored:
    """A tensor, or several of one kind.

    Attributes:
        name: full name, or a pattern with `*` for the number of the block.
        shape: "256 x 256"; empty where those of one kind differ.
        bits: per weight, scales and zero points included.
    """

    name: str
    count: int
    shape: str
    weights: int
    bits: float

    @property
    def bytes(self) -> int:
        """What it takes."""
        return math.ceil(self.weights * self.bits / 8)

    @property
    def bytes_16(self) -> int:
        """What it took before, at 16 bits."""
        return 2 * self.weights

    @property
    def smaller(self) -> float:
        """How many times less that is."""
        return 16 / self.bits


def stored_in(run: RunFiles) -> list[Stored]:
    """Every tensor of the quantized model that is trained and exported; none where its files do not tell."""
    step = next((step for step in run.steps if step.variant == run.start and step.layers), None)
    if step is None:
        return []
    quantized = [stored for layer in step.layers if (stored := _quantized(layer)) is not None]
    return quantized + [Stored(name, 1, *shape, 16.0) for name, shape in _dense(step)]


def _quantized(layer: dict[str, Any]) -> Stored | None:
    out, width, bits = (layer.get(key) for key in ("out_features", "in_features", "bits"))
    if not (isinstance(out, int) and isinstance(width, int) and isinstance(bits, int | float) and bits > 0):
        return None
    return Stored(layer["name"], 1, f"{out} x {width}", out * width, float(bits))


def _dense(step: StepFiles) -> list[tuple[str, tuple[str, int]]]:
    """Names and shapes of the tensors that are not quantized, from the header of their file."""
    try:
        with (step.folder / DENSE).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        return [(str(n), (" x ".join(map(str, s)), math.prod(map(int, s)))) for n, s in sorted(shapes.items())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return []


def by_kind(tensors: Iterable[Stored]) -> list[Stored]:
    """Tensors of one name but for the number of their block, and of one width, as one."""
    kinds: dict[tuple[str, float], list[Stored]] = {}
    for tensor in tensors:
        kinds.setdefault((pattern_of(tensor.name), tensor.bits), []).append(tensor)
    return [
        Stored(
            name if len(found) > 1 else found[0].name,
            len(found),
            found[0].shape if len({one.shape for one in found}) == 1 else "",
            sum(one.weights for one in found),
            bits,
        )
        for (name, bits), found in kinds.items()
    ]


def together(tensors: Sequence[Stored]) -> Stored:
    """All of them as one."""
    weights = sum(tensor.weights for tensor in tensors)
    return Stored("all", len(tensors), "", weights, 8 * sum(tensor.bytes for tensor in tensors) / max(weights, 1))


def pattern_of(name: str) -> str:
    """A full name with `*` in place of the number of its block."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def patterns(names: Iterable[str]) -> list[str]:
    """Names of layers, those alike but for the number of their block as one with their count."""
    names = list(names)
    counts = Counter(map(pattern_of, names))
    whole = {pattern_of(name): name for name in names}
    return [f"{pattern} ({count})" if count > 1 else whole[pattern] for pattern, count in counts.items()]
