"""How weights are stored: bits, group size, symmetry, and the short spelling of all three.

    w2g128        2-bit codes, one scale and one integer zero point per 128 input features (asymmetric)
    w3g64-sym     3 bits, group 64, the zero point fixed in the middle of the grid
    w4-row        4 bits, one scale and zero point per output row

The grid itself (how a weight becomes a code) is written down once, in `rqat_kernels.grid`.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import RqatError

BITS = (2, 3, 4, 8)
ROW = -1
"""Value of `Scheme.group` that means one group per output row."""

_SPELLING = re.compile(r"w(?P<bits>\d+)(?P<other>(?:a\d+)?(?:kv\d+)?)(?:g(?P<group>\d+))?(?P<suffixes>(?:-[a-z]+)*)")


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
    grid: Literal["uniform"] = "uniform"

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

    def bits_per_weight(self) -> float:
        """Stored bits per weight with a 16-bit scale and a packed zero point per group (rows count as 0 overhead)."""
        if self.group == ROW:
            return float(self.bits)
        return self.bits + (16 + (0 if self.symmetric else self.bits)) / self.group

    def __str__(self) -> str:
        group = "-row" if self.group == ROW else f"g{self.group}"
        return f"w{self.bits}{group}{'-sym' if self.symmetric else ''}"

    @classmethod
    def parse(cls, text: str, *, where: str = "") -> Scheme:
        """Reads a spelling such as `w2g128`, `w3g64-sym` or `w4-row`; without a group it is 128.

        Raises:
            RqatError: the text is no such spelling; `where` (file, line, key) goes in front of the message.
        """
        place = f"{where}: " if where else ""
        form = "Write w<bits>g<group>[-sym], e.g. w2g128, w3g128-sym, or w4-row for one scale per row."
        match = _SPELLING.fullmatch(text.strip().lower())
        if match is None:
            raise RqatError(f"{place}'{text}' is not a scheme.", hint=form)
        if match["other"]:
            raise RqatError(
                f"{place}'{text}' asks for activation or KV-cache bits; this version quantizes weights only.",
                hint=f"Use 'w{match['bits']}g{match['group'] or 128}'.",
            )
        suffixes = match["suffixes"].split("-")[1:]
        wrong = [s for s in suffixes if s not in ("sym", "row")]
        if wrong or len(set(suffixes)) != len(suffixes) or ("row" in suffixes and match["group"]):
            raise RqatError(f"{place}'{text}' is not a scheme.", hint=form)
        bits = int(match["bits"])
        if bits not in BITS:
            raise RqatError(
                f"{place}'{text}' asks for {bits} bits.", hint=f"Supported bits: {', '.join(map(str, BITS))}."
            )
        group = ROW if "row" in suffixes else int(match["group"] or 128)
        if group != ROW and (group < 8 or group % 8):
            raise RqatError(f"{place}'{text}' asks for groups of {group}.", hint="A group is a multiple of 8.")
        return cls.model_validate({"bits": bits, "group": group, "symmetric": "sym" in suffixes})
