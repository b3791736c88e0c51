"""docs/reference/performance.md, made from the CSV files in `results/`: a section per GPU, lost rows too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .plots import pictures
from .summary import lines as summary_lines
from .table import Row, machine_of, read

RESULTS = Path(__file__).parent / "results"
COMMAND = "python kernels/bench/run.py --out DIR"

INTRODUCTION = f"""# Performance

Contenders of a figure were timed in one process, taking turns, with a cold cache and random data; times are medians.
*Limit* is the larger of bytes over bandwidth and operations over the rate of matrix products, both measured on the same
card. Rows that were lost are here like those that were won. Where a row's note names no other command, it is of

    {COMMAND}

which measures again, on the GPU of your machine: correctness first, then everything below, in three parts of eight
minutes. Whole models are of `gptq_speed.py`, `decode_speed.py` and `qat_speed.py` beside it, and the fastest cuts of
packed linears of `tune_packed_linear.py`. `python kernels/bench/publish.py DIR` then writes
`kernels/bench/results/<gpu>.csv` and this page.
"""


def page() -> str:
    """The text of the page."""
    sections = [_section(path) for path in sorted(RESULTS.glob("*.csv"))]
    if not sections:
        sections = ["There are no results in this checkout yet.\n"]
    return "\n".join([INTRODUCTION, *sections])


def plots() -> dict[str, str]:
    """SVG files beside the page, by name."""
    found = {}
    for path in sorted(RESULTS.glob("*.csv")):
        found |= {f"performance-{path.stem}-{name}.svg": svg for name, svg in pictures(read(path)).items()}
    return found


def _section(path: Path) -> str:
    machine, rows = machine_of(path), read(path)
    if not machine:
        return f"## {path.stem}\n\nNothing was measured.\n"
    facts = (
        f"{machine['gpu_name']}, {machine['dates']}, `{COMMAND}`, rqat {machine['version']}, "
        f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['driver'] or 'none'}, "
        f"seed {machine['seed']}."
    )
    parts = [f"## {machine['gpu_name']}\n", facts + "\n", _summary(rows)]
    parts += [_ceilings(rows), _checks(rows), _linears(rows)]
    for title, note, ops in TABLES:
        parts.append(_timings(title, note, [row for row in rows if row.op in ops and row.mode != "check"]))
    named = {"ceiling", "packed_linear", *(op for _, _, ops in TABLES for op in ops)}
    parts.append(_timings("Others", "", [row for row in rows if row.op not in named and row.mode != "check"]))
    parts += [_plot(path.stem, rows), _missing(rows)]
    return "\n".join(part for part in parts if part)


TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Training",
        "`rqat` is the quantized step, `bf16` plain fine-tuning of the same weights with fused AdamW; both distil from "
        "the same teacher with the same loss.",
        ("training",),
    ),
    (
        "A whole run",
        "`rqat qat` on random weights, rows of 4,096 tokens, by its own log; and the same weights tuned in 16 "
        "bits on the same tokens, by distillation (kd) and by cross-entropy (ce), which needs no teacher.",
        ("qat",),
    ),
    ("Optimizer step", "Ratios are over fused AdamW on 16-bit weights.", ("optimizer",)),
    (
        "Distillation loss",
        "Forward and backward from hidden states; ratios are over torch with all logits.",
        ("linear_kl",),
    ),
    ("Straight-through gradients", "Ratios are over eager torch.", ("latent_step",)),
    (
        "GPTQ",
        "Whole models have random weights and 262,144 calibration tokens.",
        ("whole_gptq", "gptq_block", "hessian"),
    ),
    (
        "Decoding",
        "Random weights. Reading the prompt is part of the time where `prompt` is given, not where `context` is.",
        ("decoding",),
    ),
    ("Between linear layers", "Ratios are over plain torch.", ("decode",)),
    ("Packing and grids", "Ratios are over plain torch.", ("packing", "grid")),
)


def _ceilings(rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        if row.op == "ceiling" and row.p50 is not None:
            name = row.mode if row.mode != "launch" else f"empty kernel, {row.provider}"
            cell = f"| {name} | {row.p50:.3g} {row.unit} |"
            if not any(name == other.split("|")[1].strip() for other in cells):
                cells.append(cell)
    return _table("Ceilings", "", "| what | measured |\n|---|---|", cells)


def _checks(rows: Sequence[Row]) -> str:
    worst: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.mode == "check":
            worst[row.op].append(row)
    cells = []
    for op, checks in worst.items():
        red = [row for row in checks if row.p50 is None or row.note]
        error = max((row.p50 for row in checks if row.p50 is not None), default=None)
        verdict = "; ".join(f"{row.x}: {row.note}" for row in red) or "all passed"
        cells.append(f"| `{op}` | {len(checks)} | {'' if error is None else f'{error:.1e}'} | {verdict} |")
    header = "| operation | cases | largest error | verdict |\n|---|---|---|---|"
    return _table(
        "Correctness", "Relative L2 error against float64, on odd shapes, outputs poisoned first.", header, cells
    )


def _summary(rows: Sequence[Row]) -> str:
    header = "| item | measured | limit | best elsewhere |\n|---|---|---|---|"
    note = "Figures from elsewhere are published ones, of the hardware that is named, not measured here."
    return _table("In short", note, header, summary_lines(rows))


def _linears(rows: Sequence[Row]) -> str:
    sweep = [row for row in rows if row.op == "packed_linear" and row.mode != "check" and row.p50 is not None]
    plain = [row for row in sweep if "with" not in row.config]
    parts = [_sweep(plain), _mixes(plain), _peers([row for row in sweep if row.config.get("with") == "peers"])]
    return "\n".join(part for part in parts if part)


def _mixes(rows: Sequence[Row]) -> str:
    """Speedup over cuBLAS of a block's four linears together."""
    total: dict[tuple[str, str, float | str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        model, _, name = str(row.config["shape"]).rpartition(".")
        if name != "head":
            total[model, row.provider, row.x][name] = row
    xs = sorted({x for _, _, x in total if isinstance(x, int)})
    cells = []
    for model, provider in sorted({(m, p) for m, p, _ in total}):
        if provider == "cublas bf16":
            continue
        line = []
        for x in xs:
            ours, base = total.get((model, provider, x), {}), total.get((model, "cublas bf16", x), {})
            if len(ours) < 4 or len(base) < 4:
                line.append("")
                continue
            took, reference = (sum(row.p50 or 0.0 for row in part.values()) for part in (ours, base))
            limit = sum(row.limit_us or 0.0 for row in ours.values())
            line.append(f"{reference / took:.2f} ({limit / took:.0%})")
        cells.append(f"| {model} | {provider} | {' | '.join(line)} |")
    header = f"| block of | provider | {' | '.join(f'M={x}' for x in xs)} |\n|---|---|{'---|' * len(xs)}"
    note = "The four linears of a block together: times faster than cuBLAS bf16 (share of the limit). M: input rows."
    return _table("Packed linears, by block", note, header, cells)


def _sweep(rows: Sequence[Row]) -> str:
    xs = sorted({row.x for row in rows if isinstance(row.x, int)})
    header = f"| layer | provider | {' | '.join(f'M={x}' for x in xs)} |\n|---|---|{'---|' * len(xs)}"
    return _table(
        "Packed linears, by layer", "Microseconds (times faster than cuBLAS bf16).", header, _lines(rows, xs, _ratio)
    )


def _peers(rows: Sequence[Row]) -> str:
    xs = sorted({row.x for row in rows if isinstance(row.x, int)})
    header = f"| layer | provider | {' | '.join(f'M={x}' for x in xs)} |\n|---|---|{'---|' * len(xs)}"
    note = "Microseconds (times faster than cuBLAS bf16), taking turns. Humming has a symmetric grid of its own."
    return _table("Packed linears and other libraries", note, header, _lines(rows, xs, _ratio))


def _lines(rows: Sequence[Row], xs: Sequence[float | str], cell: Callable[[Row], str]) -> list[str]:
    by_line: dict[tuple[str, str], dict[float | str, str]] = defaultdict(dict)
    for row in rows:
        by_line[str(row.config["shape"]), row.provider][row.x] = cell(row)
    return [
        f"| {shape} | {provider} | {' | '.join(found.get(x, '') for x in xs)} |"
        for (shape, provider), found in sorted(by_line.items())
    ]


def _ratio(row: Row) -> str:
    ratio = "" if row.ratio is None or row.provider == "cublas bf16" else f" ({row.ratio:.2f})"
    return f"{row.p50:.1f}{ratio}"


def _timings(title: str, note: str, rows: Sequence[Row]) -> str:
    cells = []
    for row in rows:
        if row.p50 is None:
            continue
        config = ", ".join(f"{key} {value}" for key, value in row.config.items())
        what = f"{row.op} {row.mode}" if row.metric in ("speed", "rate", "time") else f"{row.op} {row.metric}"
        spread = "" if row.p20 is None or row.p80 is None else f"{_amount(row, row.p20)} to {_amount(row, row.p80)}"
        fraction = "" if row.fraction is None else f"{row.fraction:.0%}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        x = f"{row.x_name} {row.x:,}" if isinstance(row.x, int) else f"{row.x_name} {row.x}"
        cells.append(
            f"| {what} | {config} | {x} | {row.provider} | {_amount(row, row.p50)} | {spread} | {fraction} | {ratio} |"
        )
    header = (
        "| what | of | size | provider | median | 20 to 80 % | of limit | ratio |\n|---|---|---|---|---|---|---|---|"
    )
    return _table(title, note, header, cells)


def _amount(row: Row, value: float) -> str:
    if row.unit != "us":
        return f"{value:,.4g} {row.unit}" if value < 1e4 else f"{value:,.0f} {row.unit}"
    return f"{value:.3g} us" if value < 1e3 else f"{value / 1e3:,.4g} ms"


def _plot(stem: str, rows: Sequence[Row]) -> str:
    return "\n".join(f"![{name}](performance-{stem}-{name}.svg)\n" for name in pictures(rows))


def _missing(rows: Iterable[Row]) -> str:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.p50 is None and row.mode != "check":
            found[row.op, row.provider, row.note].append(f"{row.x_name} {row.x}".strip())
    cells = [f"| `{op}` | {who} | {note} | {len(xs)} |" for (op, who, note), xs in found.items()]
    return _table("Not measured", "", "| operation | provider | why | rows |\n|---|---|---|---|", cells)


def _table(title: str, note: str, header: str, cells: Sequence[str]) -> str:
    if not cells:
        return ""
    text = [f"### {title}\n"]
    if note:
        text.append(note + "\n")
    return "\n".join([*text, header, *cells]) + "\n"
