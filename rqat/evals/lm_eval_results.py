"""What lm-eval found, as an evaluation's figures and samples: of a task, a group or a tag."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from ..errors import DataError
from .stats import bootstrap, bootstrap_of_means, wilson

_PREFERRED = ("acc_norm", "acc", "math_verify", "exact_match", "pass@1")
"""Metrics that can be the accuracy of a task, the most telling first; else it is the first one."""


def results_of(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    metrics = _metrics(found["results"].get(name, {}))
    if not metrics:
        return _results_of_tasks(name, found)
    metric = _main_metric(metrics)
    samples = samples_of(found, metric)
    values = [sample["score"] for sample in samples if sample["score"] is not None]
    accuracy = float(metrics[metric])
    binary = bool(values) and set(values) <= {0.0, 1.0} and "groups" not in found
    low, high = (
        wilson(int(sum(values)), len(values)) if binary else bootstrap(values) if values else (accuracy, accuracy)
    )
    return {
        "task": name,
        "n": len(values),
        "correct": int(sum(values)) if binary else None,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "interval": "Wilson" if binary else "bootstrap over problems",
        "metric": metric,
        "metrics": metrics,
        # Without it two models are not compared problem by problem, which takes problems that are right or wrong.
        **({"prompt_hash": _hash(samples)} if binary else {}),
        "lm_eval": version("lm_eval"),
    }


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {key: value for key, value in metrics.items() if "_stderr" not in key and "," in key}


def _results_of_tasks(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a tag, or a group that lm-eval gives no figure of its own: those of its tasks, and the mean of these.

    Raises:
        DataError: not even its tasks have figures.
    """
    tasks = {task: _metrics(figures) for task, figures in found["results"].items() if task in found["samples"]}
    mains = {task: _main_metric(metrics) for task, metrics in tasks.items() if metrics}
    if not mains:
        raise DataError(f"lm-eval gives no figure for '{name}'.", hint="Choose another task.")
    accuracy = sum(float(tasks[task][metric]) for task, metric in mains.items()) / len(mains)
    scores = [_scores(found["samples"][task], metric) for task, metric in mains.items()]
    low, high = bootstrap_of_means(scores) if all(scores) else (accuracy, accuracy)
    return {
        "task": name,
        "n": sum(map(len, scores)),
        "correct": None,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "interval": "bootstrap over problems",
        "metric": f"mean over {len(mains)} tasks",
        "metrics": {f"{task}/{metric}": value for task in mains for metric, value in tasks[task].items()},
        "lm_eval": version("lm_eval"),
    }


def _scores(samples: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    short, _, chosen = metric.partition(",")
    found = [sample.get(short) for sample in samples if sample["filter"] == chosen]
    return [float(score) for score in found if isinstance(score, int | float)]


def _hash(samples: Iterable[Mapping[str, Any]]) -> str:
    return hashlib.sha256("\x00".join(sample["prompt"] for sample in samples).encode()).hexdigest()


def _main_metric(metrics: Mapping[str, Any]) -> str:
    for preferred in _PREFERRED:
        for key in metrics:
            if key.split(",")[0] == preferred:
                return key
    return next(iter(metrics))


def samples_of(found: Mapping[str, Any], metric: str | None) -> list[dict[str, Any]]:
    """One row per problem: what the main metric says of it, or with None the main metric of its own task."""
    rows: list[dict[str, Any]] = []
    for task, samples in found["samples"].items():
        own = _metrics(found["results"].get(task, {})) if metric is None else {metric: 0.0}
        if not own:
            continue
        short, _, chosen = _main_metric(own).partition(",")
        for sample in samples:
            if sample["filter"] != chosen:
                continue
            score = sample.get(short)
            response = sample["resps"][0][0] if sample["resps"] else ""
            number = float(score) if isinstance(score, int | float) else None
            rows.append(
                {
                    "task": task,
                    "index": len(rows),
                    "prompt": str(sample["arguments"][0][0]),
                    "completion": response if isinstance(response, str) else None,
                    "answer": str(sample["target"]),
                    "score": number,
                    "verdict": "correct" if number == 1.0 else "wrong",
                }
            )
    return rows
