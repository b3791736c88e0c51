"""report.html: one file, no scripts, nothing fetched; readable on a phone, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeGuard

from ..figures import percent, seconds, size
from ..stage import BASE, WATCHED, Stage
from ..stages import stages
from . import charts
from .run_files import RunFiles, StepFiles
from .samples import pick
from .summary import BETTER, NOT_SHOWN

CURVES = {
    "loss": "Loss",
    "reward": "Mean reward of the model's own completions",
    "completions/mean_length": "Mean tokens of a completion",
    "completions/clipped_ratio": "Share of completions cut off",
}
"""Figures of training.jsonl that are drawn, where they are there."""

LONGEST_TEXT = 6000
"""Characters of a completion that are shown."""


def page(run: RunFiles, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The whole document."""
    parts = [
        _head(run, summary),
        *(_results(task, variants, summary["paired"]) for task, variants in summary["tasks"].items()),
        *(_compared(label, variants) for label, variants in summary["compared"].items()),
        _samples(run, summary),
        _training(run),
        _layers(run),
        *(_checks(run, stage) for stage in stages().values() if stage.title),
        _told(run, manifest),
        _origin(run, manifest),
    ]
    return document(f"{run.name}: {run.scheme}", parts)


def document(title: str, parts: Iterable[str]) -> str:
    """An HTML page of its own, of parts that are HTML; nothing in it is run or fetched."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _head(run: RunFiles, summary: Mapping[str, Any]) -> str:
    size = ""
    if "bytes" in summary:
        size = f"{summary['bytes'] / 1e6:,.1f} MB ({summary['bits_per_parameter']:.2f} bits per parameter in all), "
    about = f"{summary['model']} in {run.scheme}, {size}{seconds(summary['seconds'])} in {len(run.steps)} steps"
    lines = [f'<header><h1>{escape(run.name)}</h1><p class="soft">{escape(about)}</p></header>']
    variants = summary["variants"]
    if variants:
        tiles = [(percent(figures["accuracy"]), variant) for variant, figures in variants.items()]
        recovered = _recovered(run, variants)
        if recovered:
            tiles.append(recovered)
        shown = "".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles
        )
        lines.append(f'<div class="tiles">{shown}</div>')
    return "\n".join(lines)


def _recovered(run: RunFiles, variants: Mapping[str, Any]) -> tuple[str, str] | None:
    """Which share of what quantization lost the last model has won back."""
    last = list(variants)[-1]
    if BASE not in variants or run.start not in variants or last in (BASE, run.start):
        return None
    lost = variants[BASE]["accuracy"] - variants[run.start]["accuracy"]
    if lost <= 0:
        return None
    won = variants[last]["accuracy"] - variants[run.start]["accuracy"]
    return f"{won / lost:.0%}", f"of the loss to {run.start} won back by {last}"


def _results(task: str, variants: Mapping[str, Any], paired: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for number, (variant, figures) in enumerate(variants.items()):
        against = {row["against"]: row for row in paired if row["variant"] == variant and row["task"] == task}
        bar = charts.interval(figures["low"], figures["accuracy"], figures["high"], number)
        rows.append(
            [
                f"<th>{escape(variant)}</th>",
                f"<td><b>{percent(figures['accuracy'])}</b></td>",
                f'<td class="left">{bar}</td>',
                f"<td>{percent(figures['low'])} to {percent(figures['high'])}</td>",
                *(f"<td>{_change(against.get(other))}</td>" for other in _references(paired, task)),
                f"<td>{figures['n']}</td>",
                f"<td>{_optional(figures, 'mean_tokens', '{:.0f}')}</td>",
                f"<td>{_optional(figures, 'truncated', '{:.1%}')}</td>",
                f"<td>{_optional(figures, 'repetition', '{:.1%}')}</td>",
                f"<td>{_optional(figures, 'unverifiable', '{}')}</td>",
                f"<td>{seconds(figures['seconds'])}</td>",
            ]
        )
    columns = ["model", "accuracy", "", "95 % interval", *(f"against {other}" for other in _references(paired, task))]
    columns += ["problems", "tokens", "cut off", "looping", "unverifiable", "time"]
    note = (
        '<p class="soft">Differences are tested problem by problem (exact McNemar test, 5 %). Intervals: Wilson for '
        "one seed, bootstrap over problems for several.</p>"
    )
    return f"<section><h2>Accuracy on {escape(task)}</h2>{_table(columns, rows)}{note}</section>"


def _compared(label: str, variants: Mapping[str, Any]) -> str:
    """A table of how far every model is from its original."""
    names = list(dict.fromkeys(name for found in variants.values() for name in found["figures"]))
    rows = [
        [
            f"<th>{escape(variant)}</th>",
            *(f"<td><b>{_optional(found['figures'], name, '{:.4g}')}</b></td>" for name in names),
            f"<td>{found['n']}</td>",
            f"<td>{found['tokens']}</td>",
            f"<td>{seconds(found['seconds'])}</td>",
        ]
        for variant, found in variants.items()
    ]
    table = _table(["model", *map(_words, names), "rows", "tokens counted", "time"], rows)
    note = '<p class="soft">Beside the model before quantization, on the same rows; less is better.</p>'
    return f"<section><h2>Distance: {escape(label)}</h2>{table}{note}</section>"


def _references(paired: Sequence[Mapping[str, Any]], task: str) -> list[str]:
    return list(dict.fromkeys(row["against"] for row in paired if row["task"] == task))


def _change(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return '<span class="soft">–</span>'
    kind = "" if row["says"] == NOT_SHOWN else " good" if row["says"] == BETTER else " bad"
    tip = f"{row['gained']} gained, {row['lost']} lost, p = {row['p']:.2g}, {row['low']:+.1%} to {row['high']:+.1%}"
    text = f"{100 * row['difference']:+.1f}" if kind else f"{100 * row['difference']:+.1f}, not shown"
    return f'<span class="badge{kind}" title="{escape(tip)}">{text}</span>'


def _samples(run: RunFiles, summary: Mapping[str, Any]) -> str:
    problems = pick(run, summary["task"]) if summary["task"] else []
    blocks = []
    for number, problem in enumerate(problems):
        columns = []
        for variant, sample in problem.completions.items():
            kind = {"correct": "good", "wrong": "bad"}.get(sample["verdict"], "")
            text = (sample["completion"] or "")[:LONGEST_TEXT] + (
                "\n..." if len(sample["completion"] or "") > LONGEST_TEXT else ""
            )
            columns.append(
                f'<div><b>{escape(variant)}</b> <span class="badge {kind}">{escape(sample["verdict"])}</span>'
                f"<pre>{escape(text.strip()) or '(nothing)'}</pre></div>"
            )
        head = f"{problem.why}: problem {problem.index}, answer {problem.answer}"
        blocks.append(
            f"<details{' open' if number == 0 else ''}><summary>{escape(head)}</summary>"
            f'<pre>{escape(problem.prompt.strip())}</pre><div class="columns">{"".join(columns)}</div></details>'
        )
    return f"<section><h2>What the models wrote</h2>{''.join(blocks)}</section>" if blocks else ""


def _training(run: RunFiles) -> str:
    drawn = []
    for step in run.steps:
        lines = step.rows("training.jsonl")
        watched = dict.fromkeys(key for line in lines for key in line if key.startswith(WATCHED))
        titles = {key: f"{key.removeprefix(WATCHED)} beside the model before quantization" for key in watched}
        for key, title in (CURVES | titles).items():
            both = ((line.get("step"), line.get(key)) for line in lines)
            points = [(float(x), float(y)) for x, y in both if _is_number(x) and _is_number(y)]
            if len(points) > 1:
                drawn.append(
                    charts.curves({step.variant: points}, title=f"{step.variant}: {title}", x_label="step", smooth=True)
                )
        if "skipped" in step.results:
            drawn.append(
                f'<p class="card">{escape(step.variant)} was skipped: {escape(str(step.results["skipped"]))}</p>'
            )
    return f"<section><h2>Training</h2>{''.join(drawn)}</section>" if drawn else ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _layers(run: RunFiles) -> str:
    """Error of every layer, one small chart per kind of layer, one line per quantizer."""
    from ..storage import read_json

    kinds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    notes = []
    for step in run.steps:
        for layer in read_json(step.folder / "layers.json") or []:
            numbers = [part for part in layer["name"].split(".") if part.isdigit()]
            if layer["error"] is not None and numbers:
                kind = layer["name"].rpartition(".")[2]
                kinds.setdefault(kind, {}).setdefault(step.variant, []).append(
                    (float(numbers[0]), float(layer["error"]))
                )
            if layer["note"]:
                notes.append(f"<li>{escape(step.variant)}, {escape(layer['name'])}: {escape(layer['note'])}</li>")
    if not kinds and not notes:
        return ""
    drawn = [charts.curves(series, title=kind, x_label="layer", percent=True) for kind, series in kinds.items()]
    intro = '<p class="soft">Share of each layer\'s output that quantization moved, on the calibration data.</p>'
    listed = f"<details><summary>{len(notes)} remarks</summary><ul>{''.join(notes)}</ul></details>" if notes else ""
    return f'<section><h2>Error of every layer</h2>{intro}<div class="small">{"".join(drawn)}</div>{listed}</section>'


def _checks(run: RunFiles, stage: Stage) -> str:
    """What a stage found, as a table."""
    tables = []
    for step in run.of(stage.name):
        facts = {key: value for key, value in step.results.items() if value not in (None, "", [])}
        rows = [
            [f"<th>{escape(_words(key))}</th>", f'<td class="wrap">{escape(_value(value))}</td>']
            for key, value in facts.items()
        ]
        tables.append(_table([], rows))
    if not tables:
        return ""
    return f'<section><h2>{stage.title}</h2><p class="soft">{stage.about}</p>{"".join(tables)}</section>'


def _told(run: RunFiles, manifest: Mapping[str, Any]) -> str:
    """What was warned of: in the plan, and while the steps ran."""
    texts = [*manifest["told"], *(text for step in run.steps for text in step.manifest.get("told", ()))]
    lines = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(texts))
    return f"<section><h2>What was told</h2><ul>{lines}</ul></section>" if lines else ""


def _origin(run: RunFiles, manifest: Mapping[str, Any]) -> str:
    import yaml

    steps = [
        [
            f"<th>{escape(step.name)}</th>",
            f"<td>{seconds(step.seconds)}</td>",
            *(f"<td>{_memory(step, key)}</td>" for key in ("peak_bytes", "estimate_bytes")),
            f"<td><code>{_fingerprint(step)}</code></td>",
        ]
        for step in run.steps
    ]
    columns = ["step", "time", "memory at the peak", "by the estimate", "fingerprint"]
    packages = {"rqat": manifest["rqat"], **manifest["packages"], **manifest["machine"]}
    rows = [
        [f"<th>{escape(_words(name))}</th>", f'<td class="wrap">{escape(str(value))}</td>']
        for name, value in packages.items()
    ]
    recipe = escape(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True))
    return (
        "<section><h2>How it came about</h2>"
        f"<details><summary>Steps</summary>{_table(columns, steps)}</details>"
        f"<details><summary>Recipe, every default filled in</summary><pre>{recipe}</pre></details>"
        f"<details><summary>Versions and machine</summary>{_table([], rows)}</details></section>"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = f"<thead><tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _memory(step: StepFiles, key: str) -> str:
    found = step.manifest.get("memory") or {}
    return size(int(found[key])) if _is_number(found.get(key)) else "–"


def _fingerprint(step: StepFiles) -> str:
    return escape(str(step.manifest.get("fingerprint", ""))[:12])


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return str(value)


def _optional(figures: Mapping[str, Any], key: str, form: str) -> str:
    return form.format(figures[key]) if figures.get(key) is not None else "–"
