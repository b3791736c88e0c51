"""report.html: one file, no scripts, nothing fetched; readable on a phone and on paper, in light and in dark.

Python chooses what is said, `report.html.j2` (a Jinja2 template that escapes all it is given) how it looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..evals.stats import BETTER, NOT_SHOWN, WORSE
from ..figures import hundredths, percent, seconds, size
from ..stage import BASE
from ..stages import stages
from . import charts
from .commands import commands
from .curves import training
from .planned import RECIPE
from .run_files import TRAINING, RunFiles, StepFiles, is_number
from .samples import CHANGED, GAINED, LOST, held_against, pick, plain
from .sizes import by_kind, patterns, stored_in, together

if TYPE_CHECKING:
    import jinja2

Pairs = Sequence[Mapping[str, Any]]

COUNTS = {"sequences": "sequences", "rows_used": "rows", "n": "problems", "tokens": "tokens"}
"""Of a step's results, those that say how much it read, and what they count."""


def page(run: RunFiles, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """The whole document."""
    import yaml

    tensors = stored_in(run)
    return document(
        f"{run.name}: {run.scheme}",
        [
            _templates()
            .get_template("report.html.j2")
            .render(
                run=run,
                summary=summary,
                state=_state(run),
                about=_about(run, summary),
                tiles=_tiles(run, summary, manifest),
                tasks=[_task(run, task, found, summary["paired"]) for task, found in summary["tasks"].items()],
                distances=[_distance(label, found) for label, found in summary["compared"].items()],
                samples=_samples(run, summary),
                training=training(run),
                layers=_layers(run),
                kinds=by_kind(tensors),
                tensors=tensors,
                whole=together(tensors),
                checks=[_check(run, stage) for stage in stages().values() if stage.title and run.of(stage.name)],
                data=_data(run),
                cost=_cost(run),
                commands=commands(run),
                told=_told(run, manifest),
                recipe=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True) if run.recipe else "",
                versions={"rqat": manifest["rqat"], **manifest["packages"], **manifest["machine"]},
                files=_files(run),
            )
        ],
    )


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


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters |= {"percent": percent, "seconds": seconds, "size": size, "words": words, "value": value}
    made.filters |= {"score": score, "hundredths": hundredths}
    made.filters |= {"against": held_against, "plain": plain, "svg": _markup, "breakable": _breakable}
    made.tests["number"] = is_number
    return made


def _markup(html: str) -> Any:
    """What a chart is made of: HTML whose texts are escaped already."""
    from markupsafe import Markup

    return Markup(html)


def _breakable(name: str) -> Any:
    """A layer's name that may go on in the next line behind its dots."""
    from markupsafe import Markup
    from markupsafe import escape as escaped

    return Markup(".<wbr>").join(escaped(part) for part in str(name).split("."))


def _state(run: RunFiles) -> str:
    """What a run that is not finished was doing when it was looked at; "" of a finished one."""
    if not run.waiting:
        return ""
    at = ""
    for step in run.begun:
        lines, steps = len(step.rows(TRAINING)), run.planned(step.name)["settings"].get("steps")
        at = f" at {step.name}" + (f", step {lines:,} of {steps:,}" if lines and is_number(steps) else "")
    done = f"{len(run.steps)} of {len(run.plan['steps'])} steps done"
    seen = f" when this page was written, {run.seen:%Y-%m-%d %H:%M} UTC" if run.seen else ""
    return f"{'Running' if run.running else 'Stopped' if at else 'Not finished'}{at}{seen}; {done}."


def _about(run: RunFiles, summary: Mapping[str, Any]) -> str:
    parts = [f"{summary['model']} in {run.scheme}"]
    parts.append(f"{seconds(summary['seconds'])} in {len(run.steps)} steps")
    machine = run.plan["machine"]
    parts.append(str(machine.get("gpu") or machine.get("processor") or ""))
    started = next((step.manifest.get("started") for step in run.steps), None)
    parts.append(str(started or "")[:10])
    return ", ".join(filter(None, parts))


def _tiles(run: RunFiles, summary: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures at the top: value and label."""
    variants = summary["variants"]
    tiles = [(score(figures["accuracy"]), f"{name} on {summary['task']}") for name, figures in variants.items()]
    pairs = [pair for pair in summary["paired"] if pair["task"] == summary["task"]]
    tiles += filter(None, [recovered(run.start, run.furthest(variants), variants, pairs)])
    if "bytes" in summary:
        bits = summary["bits_per_parameter"]
        tiles.append((size(summary["bytes"]), f"{bits:.2f} bits per parameter, {16 / bits:.1f} times less than 16"))
    peaks = [step.manifest["memory"]["peak_bytes"] for step in run.steps if _memory(step, "peak_bytes") is not None]
    if peaks:
        machine = manifest["machine"]
        where = machine.get("gpu") or f"{machine.get('cpus', '?')} cores"
        tiles.append((size(max(peaks)), f"memory at the peak, {where}"))
    return tiles


def recovered(start: str, last: str, variants: Mapping[str, Any], pairs: Pairs) -> tuple[str, str] | None:
    """Which share of what quantization lost the last model has won back; only of a loss and a gain that are shown."""
    if BASE not in variants or start not in variants or last in (BASE, start):
        return None
    says = {(pair["variant"], pair["against"]): pair["says"] for pair in pairs}
    if says.get((start, BASE)) == NOT_SHOWN:
        return "no loss shown", f"{start} against {BASE}: nothing to win back"
    if says.get((start, BASE)) != WORSE:
        return None
    if says.get((last, start)) != BETTER:
        return "none shown", f"of the loss to {start} won back by {last}"
    share = (variants[last]["accuracy"] - variants[start]["accuracy"]) / (
        variants[BASE]["accuracy"] - variants[start]["accuracy"]
    )
    against = says.get((last, BASE))
    if against == NOT_SHOWN and share >= 1:
        return "all", f"of the loss to {start} won back by {last}; no difference to {BASE} shown"
    if against == BETTER:
        return "more", f"than the loss to {start} won back by {last}, better than {BASE}"
    return f"{100 * share:.0f} %", f"of the loss to {start} won back by {last}"


def _task(run: RunFiles, task: str, variants: Mapping[str, Any], paired: Pairs) -> dict[str, Any]:
    """Chart and table of one task."""
    pairs = [pair for pair in paired if pair["task"] == task]
    references = list(dict.fromkeys(pair["against"] for pair in pairs))
    rows = []
    for variant, figures in variants.items():
        against = {pair["against"]: pair for pair in pairs if pair["variant"] == variant}
        rows.append((variant, figures, [against.get(other) for other in references]))
    intervals = {name: (found["low"], found["accuracy"], found["high"]) for name, found in variants.items()}
    return {"name": task, "chart": charts.intervals(intervals, run.variants), "references": references, "rows": rows}


def _distance(label: str, variants: Mapping[str, Any]) -> dict[str, Any]:
    """The table of one task that compares models with their original: figures, and which of them are paired."""
    figures = list(next(iter(variants.values()))["figures"])
    tested = [(other, tests) for found in variants.values() for other, tests in found["paired"].items()]
    others = list(dict.fromkeys(other for other, _ in tested))
    pairs = [(other, name) for other in others for name in figures if any(name in t for o, t in tested if o == other)]
    return {"label": label, "figures": figures, "pairs": pairs, "variants": variants}


def _samples(run: RunFiles, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    if summary["task"] is None:
        return None
    picked = pick(run, summary["task"])
    if not picked.shown:
        return None
    before = "before quantization" if picked.reference == BASE else f"after {picked.reference}"
    labels = {
        "all": "all",
        CHANGED: "changed: not the same for every model",
        LOST: f"lost: right {before}, wrong after {picked.last}",
        GAINED: f"gained: wrong {before}, right after {picked.last}",
    }
    shown = {kind: sum(kind == "all" or kind in one.kinds for one in picked.shown) for kind in labels}
    filters = [(kind, label, shown[kind], picked.counts.get(kind, 0)) for kind, label in labels.items()]
    of = run.tasks[summary["task"]]
    return {
        "picked": picked,
        "filters": filters,
        "files": [(step.variant, _link(step, "samples.jsonl")) for step in of],
    }


def _link(step: StepFiles, file: str) -> str:
    """A file of a step, as a link from the report."""
    return f"{quote(step.folder.name)}/{file}"


def _files(run: RunFiles) -> list[tuple[str, str]]:
    """Other files of the run that are worth opening."""
    written = () if run.waiting else ("summary.json", "manifest.json")  # after this page, or with it
    found = [(name, name) for name in (*written, RECIPE) if name in written or (run.folder / name).is_file()]
    logs = [step for step in run.steps if (step.folder / TRAINING).is_file()]
    return found + [(f"{TRAINING} of {step.variant}", _link(step, TRAINING)) for step in logs]


def _layers(run: RunFiles) -> dict[str, Any]:
    """The error of every layer as heat maps of one scale; of those outside the blocks, and what was remarked."""
    maps: dict[str, dict[str, dict[int, tuple[str, float]]]] = {}
    outside: list[tuple[str, str, float]] = []
    remarks: dict[tuple[str, str], list[str]] = {}
    for step in run.steps:
        for layer in step.layers:
            numbers = [int(part) for part in layer["name"].split(".") if part.isdecimal() and len(part) < 5]
            error = layer.get("error")
            if is_number(error) and numbers:
                kinds = maps.setdefault(step.variant, {})
                kinds.setdefault(layer["name"].rpartition(".")[2], {})[numbers[0]] = (layer["name"], float(error))
            elif is_number(error):
                outside.append((step.variant, layer["name"], float(error)))
            if layer.get("note"):
                remarks.setdefault((step.variant, str(layer["note"])), []).append(layer["name"])
    return {
        "maps": charts.heat_map(maps),
        "outside": outside,
        "remarks": [(variant, patterns(names), note) for (variant, note), names in remarks.items()],
    }


def _check(run: RunFiles, stage: Any) -> dict[str, Any]:
    """What a stage found, as tables; lists of layers by pattern."""
    steps = run.of(stage.name)
    tables = [
        (step.name, [(key, found) for key, found in step.results.items() if found not in (None, "", [], {})])
        for step in steps
    ]
    return {"title": stage.title, "about": stage.about, "tables": tables}


def _data(run: RunFiles) -> list[dict[str, Any]]:
    """What was read to calibrate, to train and to evaluate, side by side; a line for steps that read the same."""
    found: dict[str, dict[str, Any]] = {}
    results = {step.name: step.results for step in run.steps}
    for step in run.plan["steps"]:
        read = [part for part in step["data"] if part["role"] != "task"]
        asked = [part["name"] for part in step["data"] if part["role"] == "task"]
        for part in read or step["data"]:
            given = part.get("options")
            told = {key: one for key, one in given.items() if one not in (None, "", [], {})} if given else {}
            name = part["name"] + (f", graded by {', '.join(asked)}" if read and asked else "")
            row = found.setdefault(
                f"{step['variant'] if read else ''} {name} {told}",
                {"stages": {}, "variant": "", "name": name, "domain": part["domain"], "options": told, "counts": {}},
            )
            row["stages"][step["stage"]] = None
            row["variant"] = "" if not read or step["variant"] == BASE else step["variant"]
            row["counts"] |= {
                words: figures[key]
                for figures in [results.get(step["name"], {})]
                for key, words in COUNTS.items()
                if is_number(figures.get(key))
            }
    return list(found.values())


def _cost(run: RunFiles) -> dict[str, Any]:
    """Time and memory of every step, and of every stage together."""
    rows = []
    longest = max((step.seconds for step in run.steps), default=0.0)
    for step in run.steps:
        rows.append(
            {
                "name": step.name,
                "seconds": step.seconds,
                "share": step.seconds / longest if longest else 0.0,
                "peak": _memory(step, "peak_bytes"),
                "estimate": _memory(step, "estimate_bytes"),
                "fingerprint": str(step.manifest.get("fingerprint", ""))[:12],
            }
        )
    totals: dict[str, float] = {}
    for step in run.steps:
        totals[step.stage] = totals.get(step.stage, 0.0) + step.seconds
    begun = {step.name for step in run.begun}
    states = ["begun" if entry["name"] in begun else "waiting" for entry in run.waiting]
    return {"rows": rows, "totals": totals, "waiting": list(zip(run.waiting, states, strict=True))}


def _memory(step: StepFiles, key: str) -> int | None:
    found = step.manifest.get("memory")
    count = found.get(key) if isinstance(found, dict) else None
    return int(count) if is_number(count) else None


def _told(run: RunFiles, manifest: Mapping[str, Any]) -> list[str]:
    """What was warned of: in the plan, and while the steps ran."""
    texts = [*manifest["told"], *(text for step in run.steps for text in step.manifest.get("told", ()))]
    return list(dict.fromkeys(map(str, texts)))


def score(share: float) -> str:
    """An accuracy in per cent; what a task of lm-eval gives in its place, as it is."""
    return percent(share) if abs(share) <= 1 else hundredths(share)


def words(key: Any) -> str:
    """A key as words."""
    return str(key).replace("_", " ")


def value(found: Any) -> str:
    """A value as people read it; a list of names of layers by pattern."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.4g}"
    if isinstance(found, Mapping):
        return ", ".join(f"{words(key)} {value(each)}" for key, each in found.items())
    if isinstance(found, list | tuple):
        if len(found) > 4 and all(isinstance(each, str) for each in found):
            return ", ".join(patterns(found))
        listed = ", ".join(map(value, found))
        return listed if all(isinstance(each, str) for each in found) else f"[{listed}]"
    return str(found)
