"""Puts what was measured into the repository: `python kernels/bench/publish.py DIR`.

The parts in DIR, and what the scripts for whole models left there, go into `kernels/bench/results/<gpu>.csv`; the
winners of tune_packed_linear.py go into `kernels/rqat_kernels/measured/<gpu>.json`; then docs/reference/performance.md
is written anew. `--measured` does no more than the second, so that a run after tuning uses what tuning found;
`--summary` only prints the most important figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Not the folder of this file: its modules have names such as `table`.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if p != str(HERE))]
# ruff: noqa: E402

from bench.collect import collected
from bench.summary import lines as summary_lines
from bench.table import COLUMNS, Table, machine_of, read

MEASURED = HERE.parent / "rqat_kernels" / "measured"
PART = re.compile(r"-(part[123]|qat)\.csv$")

MEASURED_THING = (
    "kernel_name", "kernel_operation_mode", "metric_name", "x_name", "x_value", "extra_benchmark_config_str",
)  # fmt: skip

CEILING = ("ceiling", "device", "read")
"""The row that says how fast a GPU reads."""


def publish(folder: Path, results: Path) -> list[Path]:
    """Joins the parts of each GPU in `folder` into one file in `results`; its ceilings are those of the first part.

    run.py's rows come before those of a script that measured the same, and what was not measured anew stays as it was,
    with its date, if it was measured with the same versions.
    """
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.csv")):
        if PART.search(path.name):
            parts.setdefault(PART.sub("", path.name), []).append(path)
    written = []
    results.mkdir(parents=True, exist_ok=True)
    for name, paths in parts.items():
        target = results / f"{name}.csv"
        before = list(_lines(target)) if target.exists() else []
        lines = [line for path in paths for line in _lines(path)]
        _write(target, lines)
        machine = machine_of(target)
        facts = {key: machine[key] for key in ("gpu_name", "version", "torch", "triton", "driver") if machine}
        reads = next((row.p50 for row in read(target) if (row.op, row.provider, row.mode) == CEILING), None)
        there = set(map(_what, lines))
        with tempfile.TemporaryDirectory() as scratch:
            table = Table(Path(scratch) / "collected.csv", facts, seed=0)
            for row in collected(folder, facts.get("gpu_name", ""), reads):
                table.add(row)
            table.close()
            lines += [line for line in _lines(table.path) if _what(line) not in there]
        there = set(map(_what, lines))
        same = [line for line in before if all(line[key] == facts.get(key) for key in ("gpu_name", "torch", "triton"))]
        _write(target, lines + [line for line in same if _what(line) not in there])
        written.append(target)
    return written


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _write(path: Path, lines: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)


def _what(line: dict[str, str]) -> tuple[str, ...]:
    """What was measured, whoever did it: rows that are compared with each other are replaced together."""
    own = () if line["kernel_name"] != "ceiling" else (line["kernel_provider"],)
    return (*(line[name] for name in MEASURED_THING), *own)


def merge(folder: Path, slug: str, measured: Path) -> Path | None:
    """Adds what packed_linear.json in `folder` found to the table of a GPU; None when there is no such file.

    What the new file lacks stays, so that a tuning run cut short loses nothing.
    """
    found = next(iter(sorted(folder.rglob("packed_linear.json"))), None)
    if found is None:
        return None
    target = measured / f"{slug}.json"
    table = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    entry = table.setdefault("packed_linear", {})
    for key, value in json.loads(found.read_text(encoding="utf-8")).items():
        entry[key] = entry.get(key, {}) | value if isinstance(value, dict) else value
    target.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return target


def main() -> int:
    """Publishes and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measured", action="store_true", help="only the table that kernels read")
    parser.add_argument(
        "--gpu", help="file name of the GPU that packed_linear.json is of; default: that of the CSV files"
    )
    parser.add_argument("--summary", action="store_true", help="write nothing; print the most important figures")
    options = parser.parse_args()
    if options.summary:
        with tempfile.TemporaryDirectory() as scratch:
            for path in publish(options.folder, Path(scratch)):
                print("\n".join([path.stem, *summary_lines(read(path))]))
        return 0
    written = [] if options.measured else publish(options.folder, HERE / "results")
    slug = options.gpu or (written[0].stem if len(written) == 1 else _this_gpu())
    table = merge(options.folder, slug, MEASURED) if slug else None
    print("\n".join(map(str, [*written, *([table] if table else [])])) or "no results there")
    if not written:
        return 0 if table else 1
    root = HERE.parents[1]
    return subprocess.run([sys.executable, root / "docs" / "generate.py"], check=False).returncode


def _this_gpu() -> str | None:
    import torch

    from rqat_kernels.dispatch import gpu_slug

    return gpu_slug(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
