"""The curves of a training: one small chart for every figure that tells how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..figures import seconds
from ..stage import WATCHED
from . import charts
from .run_files import TRAINING, RunFiles, StepFiles, is_number

CURVES = {
    "loss": "Loss",
    "reward": "Mean reward",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens per second",
    "completions/mean_length": "Tokens of a completion",
    "completions/clipped_ratio": "Share of completions cut off",
    "entropy": "Entropy of a token, nats",
    "frac_reward_zero_std": "Share of prompts without signal",
    "repetition": "Share of completions that loop",
}
"""Figures of training.jsonl that are drawn, where they are there."""


def training(run: RunFiles) -> list[dict[str, Any]]:
    """For every training: what it is called, what it took, and its charts; why it was skipped, if it was."""
    found = []
    colours = {variant: number for number, variant in enumerate(run.variants)}
    for step in [*run.steps, *run.begun]:
        lines = _with_speed(step.rows(TRAINING))
        drawn, zero = _charts(lines, colours.get(step.variant, 0))
        skipped = str(step.results.get("skipped", ""))
        if drawn or skipped:
            about = {"name": step.name, "variant": step.variant, "about": _about(step, lines), "skipped": skipped}
            found.append({**about, "charts": drawn, "zero": zero})
    return found


def _charts(lines: Sequence[dict[str, Any]], colour: int) -> tuple[list[str], list[str]]:
    """Charts, and titles of those in which there would be nothing to see."""
    keys = dict.fromkeys(key for line in lines for key in line)
    watched = {
        key: f"{key.removeprefix(WATCHED)} beside the model before quantization"
        for key in keys
        if key.startswith(WATCHED)
    }
    rewards = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    single = {key: f"Reward '{key.split('/')[1]}'" for key in rewards} if len(rewards) > 1 else {}
    drawn, zero = [], []
    for key, title in (CURVES | single | watched).items():
        both = ((line.get("step"), line.get(key)) for line in lines)
        points = [(float(x), float(y)) for x, y in both if is_number(x) and is_number(y)]
        if len(points) > 1 and not any(y for _, y in points):
            zero.append(title[0].lower() + title[1:])
        elif len(points) > 1:
            smooth = key != "lr"
            drawn.append(
                charts.curves({title: points}, title=title, x_label="step", smooth=smooth, first_colour=colour)
            )
    return [chart for chart in drawn if chart], zero


def _with_speed(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines with `tokens_per_s`, of tokens seen since the line before; none for the first, which warms up."""
    found = []
    before: Any = None
    for line in lines:
        now, took = line.get("tokens"), line.get("seconds")
        if is_number(now) and is_number(before) and is_number(took) and now > before and took > 0:
            line = {**line, "tokens_per_s": (now - before) / took}
        before = now
        found.append(line)
    return found


def _about(step: StepFiles, lines: Sequence[dict[str, Any]]) -> str:
    results = step.results
    parts = [f"{len(lines):,} steps"] if lines else []
    if is_number(results.get("tokens")):
        parts.append(f"{results['tokens']:,} tokens")
    if is_number(results.get("train_seconds")):
        parts.append(seconds(results["train_seconds"]))
    if is_number(results.get("rows_used")):
        often = results.get("times_used")
        parts.append(f"{results['rows_used']:,} rows{f', each about {often:g} times' if is_number(often) else ''}")
    if is_number(results.get("codes_changed")):
        parts.append(f"{100 * results['codes_changed']:.2g} % of the codes changed")
    if results.get("rows_dropped_too_long"):
        parts.append(f"{results['rows_dropped_too_long']:,} rows dropped as too long")
    return ", ".join(parts)
