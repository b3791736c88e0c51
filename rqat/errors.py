"""The errors a user can make, as one family.

    RqatError               anything the user can put right; the CLI prints it without a traceback and exits with 2
    ├── UnknownName         a name nobody registered: carries the known names and the nearest one
    ├── RecipeError         one or more problems in a recipe, all at once, each with file and line
    ├── PluginError         a plugin that does not import, clashes with another, or breaks its contract
    ├── ModelError          a model or tokenizer that cannot be loaded, quantized or trained as asked
    ├── DataError           a source or task whose data is missing, empty or malformed
    ├── RunError            a run folder that holds something else, is not writable, or does not match the plan
    │   └── DiskError       the disk is full or failing: exits with 3, and the same command goes on once that is mended
    └── NumericsError       non-finite weights, losses or statistics

A message has three parts: what was asked (value and place), what is wrong, what to do; the last one is the `hint`.
A bug is never an RqatError: it keeps its traceback. One of a third party's plugin is a line, and a traceback with `-v`
(see `discovery.fault_of`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RqatError(Exception):
    """Something the user can put right.

    Args:
        message: what was asked, where, and what is wrong with it. One line.
        hint: what to do about it. One line, may be empty.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UnknownName(RqatError):
    """A name that is not registered, e.g. `recipes/mine.yaml:7 quantize.method: 'gtpq' is not a quantizer.`

    Args:
        name: what was asked for.
        kind: what it should have been, with its article left out ("quantizer", "recipe", "task").
        known: every name that would have been accepted.
        where: file, line and key it was read from, or "" when it came from the command line.
    """

    def __init__(self, name: str, kind: str, known: Iterable[str], *, where: str = "") -> None:
        names = sorted(known)
        article = "an" if kind[:1] in "aeiou" else "a"
        place = f"{where}: " if where else ""
        hint = f"Known: {', '.join(names) or 'none'}."
        near = nearest(name, names)
        if near:
            hint += f" Did you mean '{near}'?"
        super().__init__(f"{place}'{name}' is not {article} {kind}.", hint=hint)
        self.name = name
        self.kind = kind


class RecipeError(RqatError):
    """Every problem of one recipe. `problems` are complete lines, in file order; plain text is one."""

    def __init__(self, problems: str | Sequence[str], *, hint: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class PluginError(RqatError):
    """A plugin that does not import, clashes with another, or breaks its contract."""


class MissingPackage(PluginError):
    """A plugin's part that needs a package which is not installed."""


class ModelError(RqatError):
    """A model or tokenizer that cannot be loaded, quantized or trained as asked."""


class DataError(RqatError):
    """A source or task whose data is missing, empty or malformed."""


class RunError(RqatError):
    """A run folder that holds something else, cannot be written, or does not match the plan."""


class DiskError(RunError):
    """The disk is full or failing. What was finished stays, and the same command goes on once there is room."""

    exit_code = 3


class NumericsError(RqatError):
    """Weights, losses or statistics that are not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name`, whatever its case, or "" when none is close."""
    by_lower = {str(candidate).lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else ""
