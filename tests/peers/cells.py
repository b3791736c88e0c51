"""What is compared: a method at a width is a cell, and what became of it one JSON file.

A cell is done when its file says so for the same model, tokens, settings and version; so a comparison that was ended is
run again and goes on, and what was changed is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqat.storage import read_json, write_json

OURS = "rqat"


@dataclass(frozen=True)
class Method:
    """A way to quantize.

    Attributes:
        tool: `rqat`, or one of `environments.PEERS`.
        settings: what the tool is asked for beside bits, group and free zero points; nothing is its own choice.
        method: rqat's quantizer.
    """

    tool: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""


METHODS = {
    "rqat-rtn": Method(OURS, method="rtn"),
    "rqat-gptq": Method(OURS, method="gptq"),
    "rqat-awq": Method(OURS, method="awq"),
    "rqat-block-ap": Method(OURS, method="block-ap"),
    "gptqmodel": Method("gptqmodel"),
    "gptqmodel-mse": Method("gptqmodel", {"mse": 2.4}),
    "llm-compressor": Method("llm-compressor"),
    "llm-compressor-mse": Method("llm-compressor", {"observer": "mse"}),
    # Steps of each block: its default, its preset `light`, and what a CPU does in the time of the others.
    "auto-round": Method("auto-round", {"iters": 200}),
    "auto-round-eager": Method("auto-round", {"iters": 200, "enable_torch_compile": False}),
    "auto-round-50": Method("auto-round", {"iters": 50, "lr": 5e-3}),
    "auto-round-20": Method("auto-round", {"iters": 20}),
}

USUAL = tuple(name for name in METHODS if name not in ("auto-round", "auto-round-eager", "auto-round-50"))
"""Without those that take a core most of a day."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A method at a width, or the original where `name` is `ORIGINAL`."""

    name: str
    bits: int
    group: int

    def __str__(self) -> str:
        return self.name if self.bits == 16 else f"{self.name}-w{self.bits}g{self.group}"

    @classmethod
    def parse(cls, text: str, group: int) -> Cell:
        """A cell from `METHOD:wBITS`.

        Raises:
            ValueError: there is no such method or width.
        """
        name, _, width = text.partition(":")
        if name not in METHODS:
            raise ValueError(f"'{name}' is no method; known: {', '.join(METHODS)}.")
        if width not in ("w2", "w3", "w4", "w8"):
            raise ValueError(f"'{text}': '{width}' is no width; known: w2, w3, w4, w8.")
        return cls(name, int(width[1:]), group)


ORIGINAL = Cell("original", 16, 0)


def every(names: Iterable[str], widths: Iterable[int], group: int) -> list[Cell]:
    """All cells of methods and widths, a width after the other."""
    names = list(names)
    return [Cell(name, bits, group) for bits in widths for name in names]


class Results:
    """The files of a comparison.

    Args:
        folder: where they lie; it exists.
        asked: what a result depends on beside its cell: model, tokens, threads.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self._asked = dict(asked)

    def asked(self, cell: Cell, version: str) -> Result:
        """What a cell's result depends on."""
        method = METHODS.get(cell.name)
        own = {"tool": method.tool, "settings": dict(method.settings), "method": method.method} if method else {}
        return {**self._asked, "name": cell.name, "bits": cell.bits, "group": cell.group, "version": version, **own}

    def find(self, cell: Cell, asked: Result) -> Result | None:
        """A finished cell, failed ones included; None where there is none, or it was asked for something else."""
        found = read_json(self._file(cell))
        return found if isinstance(found, dict) and found.get("asked") == asked else None

    def keep(self, cell: Cell, asked: Result, result: Result) -> Result:
        """Writes what became of a cell, atomically."""
        whole = {"asked": asked, **result}
        write_json(self._file(cell), whole)
        return whole

    def all(self) -> Iterator[Result]:
        """Every finished cell that was asked for alike, wide ones first, in the order of `METHODS`."""
        places = [ORIGINAL.name, *METHODS]
        found = [read_json(path) for path in self.folder.glob("*.json")]
        mine = [each for each in found if isinstance(each, dict) and self._belongs(each)]
        yield from sorted(mine, key=lambda each: (-each["asked"]["bits"], places.index(each["asked"]["name"])))

    def _belongs(self, result: Result) -> bool:
        asked = result.get("asked", {})
        known = asked.get("name") == ORIGINAL.name or asked.get("name") in METHODS
        return known and all(asked.get(key) == value for key, value in self._asked.items())

    def _file(self, cell: Cell) -> Path:
        return self.folder / f"{cell}.json"
