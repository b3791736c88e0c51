"""What reports and `rqat compare` show of tasks that compare a model with its original: figures, intervals, pairs.

A figure is a mean over tokens, found for every row beside its number of tokens. Rows are drawn whole for the intervals,
since the tokens of one row are alike. Two models are paired where they read the same rows, token by token; the test
flips the signs of the rows' differences. Of the perplexity, exp of such a mean, the mean itself is what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import RunError
from ..evals.stats import NOT_SHOWN, bootstrap_of_ratio, paired_means
from .run_files import is_number
from .scored import Scored

PERPLEXITY, ITS_MEAN = "perplexity", "nll"
"""The figure that is exp of a mean, and what its mean is called in a row."""

CLOSE = 1e-3
"""How far, as a share, the mean over the rows may be from the figure that it is to explain."""

LESS, MORE = "less", "more"


def distances(found: Sequence[Scored], base: Scored, labels: Mapping[Any, str]) -> dict[str, Any]:
    """The table of one task on the same rows: a line for every model and figure.

    Args:
        base: the one the others are compared with.
        labels: what the models are called, by folder.

    Raises:
        RunError: a file of samples is not whole.
    """
    for one in found:
        if len(one.samples) != one.results["n"]:
            raise RunError(
                f"'{one.folder / 'samples.jsonl'}' tells of {len(one.samples):,} rows, its results.json of "
                f"{one.results['n']:,}.",
                hint="The file is damaged: evaluate again.",
            )
    names = [name for name in base.results["figures"] if all(name in one.results["figures"] for one in found)]
    rows = [_row(name, one, base, labels) for name in names for one in found]
    notes = []
    if any(row["low"] is None for row in rows):
        notes.append("No interval where the rows do not add up to the figure, or there is one row only.")
    if any(one.original != other.original for one in found for other in found if one.original and other.original):
        notes.append("The models were compared with different originals.")
    return {
        "task": base.task,
        "n": base.results["n"],
        "tokens": base.results["tokens"],
        "data": str(base.results.get("data", "")),
        "figures": names,
        "against": labels[base.folder],
        "rows": rows,
        "notes": notes,
    }


def sure(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of the figures of one model, where its rows explain them."""
    found = {}
    for name in results["figures"]:
        means, weights = _means(name, results, samples)
        if means is not None:
            low, high = map(_as(name), bootstrap_of_ratio(means, weights))
            found[name] = (low, high)
    return found


def differences(
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    other: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """The paired test of every figure of two models on the same rows, where the rows of both explain it.

    Args:
        other: results of the model that it is compared with.
        others: its samples.
    """
    found = {}
    for name in results["figures"]:
        mine, weights = _means(name, results, samples)
        theirs, same = _means(name, other, others) if name in other["figures"] else (None, weights)
        if mine is not None and theirs is not None and np.array_equal(weights, same):
            found[name] = _difference(name, mine, theirs, weights)
    return found


def _row(name: str, one: Scored, base: Scored, labels: Mapping[Any, str]) -> dict[str, Any]:
    value = float(one.results["figures"][name])
    mine, weights = _means(name, one.results, one.samples)
    low, high = (None, None) if mine is None else map(_as(name), bootstrap_of_ratio(mine, weights))
    row: dict[str, Any] = {
        "model": labels[one.folder],
        "figure": name,
        "value": value,
        "low": low,
        "high": high,
        "n": one.results["n"],
        "tokens": one.results["tokens"],
        "source": str(one.folder),
    }
    theirs, _ = _means(name, base.results, base.samples)
    if one is not base and mine is not None and theirs is not None:
        row |= _difference(name, mine, theirs, weights) | {"against": labels[base.folder]}
    return row


def _difference(name: str, mine: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """The paired test; of the perplexity as a ratio, which is exp of the difference of the means."""
    told = asdict(paired_means(mine, theirs, weights))
    shown = told["p"] < 0.05
    as_figure = _as(name)
    return {
        "is_ratio": name == PERPLEXITY,
        **{key: as_figure(told[of]) for key, of in (("difference", "difference"), ("difference_low", "low"))},
        "difference_high": as_figure(told["high"]),
        "p": told["p"],
        "says": NOT_SHOWN if not shown else LESS if told["difference"] < 0 else MORE,
    }


def _means(
    name: str, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray | None, np.ndarray]:
    """A figure's mean in every row that has tokens, and how many; None where these do not explain the figure."""
    rows = [row for row in samples if row["tokens"] > 0]
    weights = np.array([row["tokens"] for row in rows], dtype=float)
    key = ITS_MEAN if name == PERPLEXITY else name
    if len(rows) < 2 or not all(key in row for row in rows) or not is_number(results["figures"][name]):
        return None, weights
    values = np.array([row[key] for row in rows], dtype=float)
    mean = _as(name)(float((values * weights).sum() / weights.sum()))
    figure = float(results["figures"][name])
    return (values if math.isclose(mean, figure, rel_tol=CLOSE, abs_tol=1e-9) else None), weights


def _as(name: str) -> Any:
    """From a mean over tokens to the figure."""
    return (lambda mean: math.exp(min(mean, 700.0))) if name == PERPLEXITY else (lambda mean: mean)


def heading(table: Mapping[str, Any]) -> str:
    """What stands above such a table."""
    on = f" on {table['data']}" if table["data"] else ""
    return f"### {table['task']}{on}: {table['n']:,} rows, {table['tokens']:,} tokens"


def lines(table: Mapping[str, Any], p_value: Any) -> list[list[str]]:
    """Cells of such a table, its head first."""
    head = ["figure", "model", "value (95 %)", f"against {table['against']} (95 %)", "p", ""]
    return [head, *(_cells(row, p_value) for row in table["rows"])]


def _cells(row: Mapping[str, Any], p_value: Any) -> list[str]:
    interval = "" if row["low"] is None else f" ({_short(row['low'])} to {_short(row['high'])})"
    cells = [row["figure"], row["model"], f"{_short(row['value'])}{interval}", "", "", ""]
    if "says" in row:
        sign, many = ("", "times ") if row["is_ratio"] else ("+", "")
        told = [_short(row[key], sign) for key in ("difference", "difference_low", "difference_high")]
        cells[3:] = [f"{many}{told[0]} ({told[1]} to {told[2]})", p_value(row["p"]), row["says"]]
    return cells


def _short(value: float, sign: str = "") -> str:
    """Four digits, or all of a whole part that has more."""
    return f"{value:{sign},.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:{sign}.4g}"


LEGEND = (
    "Figures are means over tokens; less KL is nearer to the original. Paired row by row: sign flips of the rows' "
    "differences at 5 %; intervals by bootstrap over rows, 10,000 draws. Perplexities are compared by their ratio."
)
