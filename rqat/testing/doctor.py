"""Runs a suite without pytest, for `rqat plugins doctor`."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, RqatError
from ..registry import Card, Kind, Registry
from .data import SourceSuite, TaskSuite
from .exporters import ExporterSuite
from .objectives import ObjectiveSuite
from .quantizers import QuantizerSuite
from .rewards import RewardSuite
from .suite import Suite

SUITES: dict[Kind, type[Suite]] = {
    "quantizer": QuantizerSuite,
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
    """Runs the suite of a card's kind, with the given options instead of the defaults."""
    missing = [name for name, field in card.options.model_fields.items() if field.is_required()]
    missing = [name for name in missing if name not in (options or {})]
    attributes = {"name": card.name, "options": dict(options or {}), "registry": registry}
    suite = type("Examined", (SUITES[card.kind],), attributes)()
    for name in sorted(name for name in dir(suite) if name.startswith("test_")):
        words = name.removeprefix("test_").replace("_", " ")
        if missing:
            yield Result(words, skipped=f"needs the options {', '.join(missing)}")
            continue
        try:
            getattr(suite, name)()
        except DataError as error:
            yield Result(words, skipped=str(error))
        except (AssertionError, RqatError) as error:
            yield Result(words, error=" ".join(str(error).split()))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            yield Result(words, error=f"{type(error).__name__}: {' '.join(str(error).split())} ({where})")
        else:
            yield Result(words)
