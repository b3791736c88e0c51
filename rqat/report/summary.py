"""summary.json: how every model of a run did, and which differences are shown.

{"name", "scheme", "model", "task",
 "variants":   {"bf16": {"task", "n", "accuracy", "low", "high", "seconds", ...}, "gptq": {...}, ...},   the first task
 "tasks":  {"math500": {"bf16": {...}, ...}, ...},                                                  every task
 "compared": {"kl on text wiki.txt": {"bf16": {"figures": {"kl", "perplexity"}, "n", "tokens", "seconds",
     "intervals": {"kl": [low, high], ...}, "paired": {"gptq": {"kl": {"difference", "difference_low", ...}}}}, ...}},
 "paired": [{"task", "variant", "against", "gained", "lost", "difference", "low", "high", "p", "says"}, ...],
 "bytes", "bits_per_parameter", "seconds"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..evals.harness import scores
from ..evals.stats import paired
from ..stage import BASE
from .distances import differences, sure
from .run_files import RunFiles, StepFiles, is_number

FIGURES = (
    *("task", "n", "correct", "wrong", "unverifiable", "accuracy", "low", "high", "interval", "seconds"),
    *("truncated", "repetition", "unclosed_think", "mean_tokens", "tokens_per_s", "seeds", "metric"),
    *("generation", "backend"),
)
"""What is taken over from an evaluation's results.json, where it is there."""


def summary_of(run: RunFiles) -> dict[str, Any]:
    """The whole summary of a run."""
    tasks = {
        label: {step.variant: {key: step.results[key] for key in FIGURES if key in step.results} for step in steps}
        for label, steps in run.tasks.items()
    }
    first = next(iter(tasks), None)
    return {
        "name": run.name,
        "model": run.plan["model"],
        "scheme": run.scheme,
        "task": first,
        "variants": tasks[first] if first is not None else {},
        "tasks": tasks,
        "compared": compared(run),
        "paired": comparisons(run),
        **_size(run),
        "seconds": round(sum(step.seconds for step in run.steps), 1),
    }


def compared(run: RunFiles) -> dict[str, dict[str, Any]]:
    """How far every model is from its original, by task and data: two tasks on data of one name are told apart.

    Each is paired with the first quantized model and with the one it was trained from, row by row.
    """
    found: dict[str, dict[str, Any]] = {}
    by_label: dict[str, dict[str, StepFiles]] = {}
    rows: dict[str, str] = {}
    for step in run.comparisons:
        label = f"{step.results['task']} on {step.results['data']}"
        while rows.setdefault(label, step.results["rows_hash"]) != step.results["rows_hash"]:
            label += "'"
        taken = ("figures", "n", "tokens", "seconds")
        told = {key: step.results[key] for key in taken}
        by_label.setdefault(label, {})[step.variant] = step
        told["intervals"] = sure(step.results, step.distances)
        told["paired"] = _paired_distances(run, step, by_label[label])
        found.setdefault(label, {})[step.variant] = told
    return found


def _paired_distances(run: RunFiles, step: StepFiles, others: Mapping[str, StepFiles]) -> dict[str, Any]:
    """The tests of one model's distances against those of models before it that read the same rows."""
    found = {}
    for against in dict.fromkeys((run.start, run.before(step.variant))):
        other = others.get(against)
        if other is not None and BASE not in (step.variant, against) and other is not step:
            found[against] = differences(step.results, step.distances, other.results, other.distances)
    return {against: tests for against, tests in found.items() if tests}


def _size(run: RunFiles) -> dict[str, Any]:
    """Bytes and bits per parameter in all: of the exported files, else of the quantized model in the format `rqat`."""
    keys = ("bytes", "bits_per_parameter")
    found = [step.results for step in run.steps if all(is_number(step.results.get(key)) for key in keys)]
    return {key: found[-1][key] for key in keys} if found and found[-1]["bits_per_parameter"] > 0 else {}


def comparisons(run: RunFiles) -> list[dict[str, Any]]:
    """Every model against the one before quantization and the first quantized one; a trained one against its start."""
    found = []
    for label, steps in run.tasks.items():
        for step in steps:
            for against in dict.fromkeys((BASE, run.start, run.before(step.variant))):
                other = next((s for s in steps if s.variant == against), None)
                if other is None or step.variant in (against, BASE):
                    continue
                compared = _compare(step, other)
                if compared is not None:
                    found.append({"task": label, "variant": step.variant, "against": against, **compared})
    return found


def _compare(now: StepFiles, before: StepFiles) -> dict[str, Any] | None:
    """The paired test of two evaluations; None unless both were asked the same and can be scored problem by problem."""
    prompts = [step.results.get("prompt_hash") for step in (now, before)]
    if None in prompts or prompts[0] != prompts[1]:
        return None
    mine, theirs = scores(now.samples), scores(before.samples)
    if len(mine) != len(theirs):  # a file was damaged
        return None
    result = paired(mine, theirs)
    return {**asdict(result), "says": result.says}
