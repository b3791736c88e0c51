"""Runs suites without pytest, for `rqat plugins doctor`.

A plugin may bring suites of its own: subclasses of the suites of `rqat.testing`, each with the `name` of its part, in
the submodule `conformance` of its package, or beside a single file `acme.py` in a module `acme_conformance`. They are
run in place of the suite of the part's kind, which they contain, since they are derived from it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingPackage, PluginError, RqatError
from ..registry import Card, Command, Kind, Registry
from .data import ComparisonSuite, SourceSuite, TaskSuite
from .exporters import ExporterSuite
from .grids import GridSuite
from .objectives import ObjectiveSuite
from .quantizers import QuantizerSuite
from .rewards import RewardSuite
from .suite import Suite, expect, expect_light
from .transforms import TransformSuite

SUITES: dict[Kind, type[Suite]] = {
    "quantizer": QuantizerSuite,
    "grid": GridSuite,
    "transform": TransformSuite,
    "objective": ObjectiveSuite,
    "reward": RewardSuite,
    "source": SourceSuite,
    "task": TaskSuite,
    "exporter": ExporterSuite,
}


@dataclass(frozen=True)
class Result:
    """How one test of a suite ended.

    Attributes:
        test: what was tested, in words.
        error: what was wrong, one line; empty when all was well.
        skipped: why it could not be run.
    """

    test: str
    error: str = ""
    skipped: str = ""


def examine(registry: Registry, card: Card, options: Mapping[str, Any] | None = None) -> Iterator[Result]:
    """Runs the suites of a part: the plugin's own, or else that of the part's kind.

    Args:
        options: set in place of the defaults.
    """
    try:
        found = suites_of(card)
    except PluginError as error:
        yield Result("its own suites", error=str(error))
        found = [_general(card)]
    for suite in found:
        yield from _run(suite, registry, card, options or {})


def examine_command(command: Command) -> Iterator[Result]:
    """What can be told of a command without running it: it has words for `rqat --help`, which it does not delay."""

    def says_what_it_is() -> None:
        expect(command.summary, "it has no help: write the docstring of its function")

    yield _result("the command says what it is", says_what_it_is)
    yield _result("its plugin is light", lambda: expect_light(command.module))


def suites_of(card: Card) -> list[type[Suite]]:
    """The suites that a plugin brings for a part; where there are none, that of the part's kind.

    Raises:
        PluginError: the plugin's module of suites does not import.
    """
    package = hasattr(sys.modules[card.module], "__path__")
    name = f"{card.module}.conformance" if package else f"{card.module}_conformance"
    if importlib.util.find_spec(name) is None:
        return [_general(card)]
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise PluginError(f"{name} does not import: {type(error).__name__}: {error}") from error
    own = [suite for _, suite in inspect.getmembers(module, inspect.isclass) if issubclass(suite, Suite)]
    return [suite for suite in own if (suite.name, suite.kind) == (card.name, card.kind)] or [_general(card)]


def _general(card: Card) -> type[Suite]:
    """The suite that every part of a kind has to pass."""
    return ComparisonSuite if card.compares else SUITES.get(card.kind, Suite)


def _run(kind: type[Suite], registry: Registry, card: Card, options: Mapping[str, Any]) -> Iterator[Result]:
    given = {**kind.options, **options}
    missing = [name for name, field in card.options.model_fields.items() if field.is_required() and name not in given]
    attributes = {"name": card.full_name, "kind": card.kind, "options": given, "registry": registry}
    suite = type("Examined", (kind,), attributes)()
    told: dict[str, str] = {}
    for name in sorted(name for name in dir(suite) if name.startswith("test_")):
        words = name.removeprefix("test_").replace("_", " ")
        if missing and not hasattr(Suite, name):
            yield Result(words, skipped=f"needs the options {', '.join(missing)}")
        else:
            result = _result(words, getattr(suite, name))
            first = told.setdefault(result.error, words)
            yield Result(words, error=f"as '{first}'") if result.error and first != words else result


def _result(words: str, test: Any) -> Result:
    try:
        test()
    except (DataError, MissingPackage) as error:
        return Result(words, skipped=str(error))
    except (AssertionError, RqatError) as error:
        return Result(words, error=" ".join(str(error).split()))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Result(words, error=f"{type(error).__name__}: {' '.join(str(error).split())} ({where})")
    return Result(words)
