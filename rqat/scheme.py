"""How weights are stored: bits, group size, symmetry, grid, and the short spelling of all four.

    w2g128        2-bit codes, one scale and one integer zero point per 128 input features (asymmetric)
    w3g64-sym     3 bits, group 64, the zero point fixed in the middle of the grid
    w4-row        4 bits, one scale and zero point per output row
    w2g128-seq    2 bits on the grid called "seq"; without a name it is "uniform"

How a weight becomes a code is the grid's to say: see `rqat.Grid`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .errors import RqatError

BITS = (2, 3, 4, 8)
ROW = -1
"""Value of `Scheme.group` that means one group per output row."""

UNIFORM = "uniform"
"""The grid of schemes that name none."""

DEFAULT = "default"
"""In a mapping of schemes, the key of the one that layers without a pattern of their own get."""

FEW = 6
"""Patterns that are spelled out where a scheme per layer is told in one line."""

_SPELLING = re.compile(
    r"w(?P<bits>\d+)(?P<other>(?:a\d+)?(?:kv\d+)?)(?:g(?P<group>\d+))?(?P<suffixes>(?:-[a-z][a-z0-9_.:]*)*)"
)


class Scheme(BaseModel):
    """A weight grid, hashable, spelled as `str(scheme)` and read back by `Scheme.parse`.

    Attributes:
        bits: bits per code: 2, 3, 4 or 8. Codes run from 0 to `levels - 1`.
        group: input features that share a scale and a zero point; `ROW` for a whole row.
        symmetric: the zero point is fixed at `2**(bits - 1)` instead of being stored per group.
        grid: name of the grid, written into manifests and checkpoints so that another can never be mistaken for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Literal[2, 3, 4, 8]
    group: int = Field(default=128, ge=ROW)
    symmetric: bool = False
    grid: str = UNIFORM

    @field_validator("group")
    @classmethod
    def _of_some(cls, group: int) -> int:
        if group == 0:
            raise ValueError("has to be 1 or more input features, or ROW.")
        return group

    @property
    def levels(self) -> int:
        """Number of codes, `2**bits`."""
        return 1 << self.bits

    @property
    def max_code(self) -> int:
        """Largest code `Q = 2**bits - 1`."""
        return self.levels - 1

    @property
    def middle(self) -> int:
        """Zero point of the symmetric grid, `2**(bits - 1)`."""
        return 1 << (self.bits - 1)

    def groups(self, in_features: int) -> int:
        """Number of groups `G` in a row of `in_features` weights, which must divide evenly."""
        return 1 if self.group == ROW else in_features // self.group

    def group_size(self, in_features: int) -> int:
        """Input features in one group of a row of `in_features` weights."""
        return in_features if self.group == ROW else self.group

    def divides(self, in_features: int) -> bool:
        """Whether a row of `in_features` weights splits into whole groups."""
        return self.group == ROW or in_features % self.group == 0

    def bits_per_weight(self, zero_bits: int | None = None) -> float:
        """Stored bits per weight with a 16-bit scale and a packed zero point per group (rows count as 0 overhead).

        Args:
            zero_bits: of a zero point, which its grid knows (`rqat.grids.bits_per_weight`); None is those of a code, or
                none where it is symmetric.
        """
        if self.group == ROW:
            return float(self.bits)
        zero = zero_bits if zero_bits is not None else 0 if self.symmetric else self.bits
        return self.bits + (16 + zero) / self.group

    def __str__(self) -> str:
        group = "-row" if self.group == ROW else f"g{self.group}"
        grid = "" if self.grid == UNIFORM else f"-{self.grid}"
        return f"w{self.bits}{group}{'-sym' if self.symmetric else ''}{grid}"

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> Scheme:
        """Reads a spelling such as `w2g128`, `w3g64-sym`, `w4-row` or `w2g128-seq`; without a group it is 128.

        Any other ending is taken for the name of a grid: `rqat.grid_of` knows which there are.

        Raises:
            RqatError: the text is no such spelling; `where` (file, line, key) goes in front of the message.
        """
        place = f"{where}: " if where else ""
        form = "Write w<bits>g<group>[-sym][-grid], e.g. w2g128, w3g128-sym, or w4-row for one scale per row."
        match = _SPELLING.fullmatch(text.strip().lower())
        if match is None:
            raise RqatError(f"{place}'{text}' is not a scheme.", hint=form)
        if match["other"]:
            raise RqatError(
                f"{place}'{text}' asks for activation or KV-cache bits; this version quantizes weights only.",
                hint=f"Use 'w{match['bits']}g{match['group'] or 128}'.",
            )
        suffixes = match["suffixes"].split("-")[1:]
        grid = [suffix for suffix in suffixes if suffix not in ("sym", "row")]
        if len(set(suffixes)) != len(suffixes) or ("row" in suffixes and match["group"]):
            raise RqatError(f"{place}'{text}' is not a scheme.", hint=form)
        bits = int(match["bits"])
        if bits not in BITS:
            raise RqatError(
                f"{place}'{text}' asks for {bits} bits.", hint=f"Supported bits: {', '.join(map(str, BITS))}."
            )
        group = ROW if "row" in suffixes else int(match["group"] or 128)
        if group != ROW and (group < 8 or group % 8):
            raise RqatError(f"{place}'{text}' asks for groups of {group}.", hint="A group is a multiple of 8.")
        chosen = {"bits": bits, "group": group, "symmetric": "sym" in suffixes, "grid": "-".join(grid) or UNIFORM}
        return cls.model_validate(chosen)


class Schemes(BaseModel):
    """A scheme for every layer: a default, and patterns for layers that get another one.

    Of several patterns that match a name the longest counts, of equally long ones the last: a layer's full name comes
    before every pattern, and the order of a mapping hardly ever matters.

    Attributes:
        default: of layers that no pattern matches.
        patterns: shell patterns on full names ("*.down_proj"), with their schemes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Scheme
    patterns: tuple[tuple[str, Scheme], ...] = ()

    def of(self, name: str) -> Scheme:
        """The scheme of the layer with this full name."""
        pattern = self.pattern_of(name)
        return self.default if pattern is None else dict(self.patterns)[pattern]

    def pattern_of(self, name: str) -> str | None:
        """The pattern that decides the scheme of a layer; None where it is the default's."""
        found = [pattern for pattern, _ in self.patterns if fnmatchcase(name, pattern)]
        # `max` keeps the first of equals.
        return max(reversed(found), key=len, default=None)

    @property
    def different(self) -> tuple[Scheme, ...]:
        """Every scheme that is named, the default first, each once."""
        return tuple(dict.fromkeys((self.default, *(scheme for _, scheme in self.patterns))))

    def facts(self) -> dict[str, Any]:
        """As JSON, for fingerprints: that of the default where there are no patterns."""
        facts: dict[str, Any] = self.default.model_dump(mode="json")
        if self.patterns:
            facts["patterns"] = [[pattern, str(scheme)] for pattern, scheme in self.patterns]
        return facts

    def __str__(self) -> str:
        return ", ".join([str(self.default), *(f"{pattern}: {scheme}" for pattern, scheme in self.patterns)])

    @property
    def brief(self) -> str:
        """As `str`, with patterns counted where there are more than a line holds: a budget names every layer."""
        if len(self.patterns) <= FEW:
            return str(self)
        counts = Counter(str(scheme) for _, scheme in self.patterns)
        told = (f"{n} pattern{'s' if n > 1 else ''}: {scheme}" for scheme, n in sorted(counts.items()))
        return ", ".join([str(self.default), *told])

    @classmethod
    def parse(cls, given: str | Mapping[str, str] | Scheme | Schemes, *, where: str = "") -> Schemes:
        """Reads one spelling, or a mapping of patterns to spellings with a `default`.

        Raises:
            RqatError: a spelling is none, or the default is missing; `where` goes in front of the message.
        """
        if isinstance(given, Schemes):
            return given
        if isinstance(given, Scheme):
            return cls(default=given)
        if isinstance(given, str):
            return cls(default=Scheme.parse(given, where=where))
        if not isinstance(given, Mapping):
            raise RqatError(
                f"{f'{where}: ' if where else ''}{given!r} is not a scheme.", hint="Spell one as text: 'w2g128'."
            )
        if DEFAULT not in given:
            raise RqatError(
                f"{f'{where}: ' if where else ''}the mapping has no default.",
                hint=f"Say which scheme all other layers get: {DEFAULT}: w2g128.",
            )
        read = {key: Scheme.parse(text, where=f"{where}.{key}" if where else key) for key, text in given.items()}
        return cls(default=read.pop(DEFAULT), patterns=tuple(read.items()))
