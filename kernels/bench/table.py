"""Rows of results: a CSV file written row by row, so that a run cut off leaves a full table of what it did.

The columns are those of Liger's benchmarks, so that the same tools read them, and then what a figure is worth: its
limit, the bytes and operations that give the limit, the ratio to 16-bit, the error, and what it ran with.
"""

from __future__ import annotations

import contextlib
import csv
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

COLUMNS = (
    *("kernel_name", "kernel_provider", "kernel_operation_mode", "metric_name", "metric_unit"),
    *("x_name", "x_label", "x_value", "y_value_50", "y_value_20", "y_value_80"),
    *("extra_benchmark_config_str", "gpu_name", "timestamp", "version"),
    *("limit_us", "fraction_of_limit", "bytes", "flops", "ratio_vs_bf16", "rel_err"),
    *("torch", "triton", "driver", "seed", "note"),
)


@dataclass
class Row:
    """One figure, or the reason why there is none.

    Attributes:
        op: the operation, as its folder is called.
        provider: who did it: "rqat", "torch", "compile", "gemlite", ...
        mode: "forward", "backward", "full", "step", "check".
        metric: "speed", "memory", "error", ...
        unit: "us", "MB", "rel", ...
        x_name, x_label, x: what varies along the axis of a plot: "M", "rows", 8.
        config: what else the figure depends on.
        p50, p20, p80: median and quantiles; None where nothing was measured.
        limit_us: what the hardware's measured ceilings allow, in microseconds.
        n_bytes, flops: least bytes moved and operations done.
        ratio: how many times faster than the 16-bit baseline of the same run.
        error: relative L2 error against float64.
        note: why there is no figure, or what is special about it.
    """

    op: str
    provider: str
    mode: str = "forward"
    metric: str = "speed"
    unit: str = "us"
    x_name: str = ""
    x_label: str = ""
    x: float | str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    p50: float | None = None
    p20: float | None = None
    p80: float | None = None
    limit_us: float | None = None
    n_bytes: float | None = None
    flops: float | None = None
    ratio: float | None = None
    error: float | None = None
    note: str = ""

    @property
    def fraction(self) -> float | None:
        """Share of the limit that was reached."""
        if self.limit_us is None or not self.p50 or self.unit != "us":
            return None
        return self.limit_us / self.p50


class Table:
    """A CSV file that grows. With `resume`, rows are added to those that are there."""

    def __init__(self, path: Path, machine: Mapping[str, str], *, seed: int, resume: bool = False) -> None:
        self.path, self.machine, self.seed = path, machine, seed
        self.rows: list[Row] = []
        new = not (resume and path.exists())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w" if new else "a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        if new:
            self._writer.writeheader()
            self._file.flush()

    def add(self, row: Row) -> None:
        """Writes a row and flushes it to the disk."""
        self.rows.append(row)
        self._writer.writerow(self._cells(row))
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()

    def _cells(self, row: Row) -> dict[str, Any]:
        return {
            "kernel_name": row.op,
            "kernel_provider": row.provider,
            "kernel_operation_mode": row.mode,
            "metric_name": row.metric,
            "metric_unit": row.unit,
            "x_name": row.x_name,
            "x_label": row.x_label,
            "x_value": row.x,
            "y_value_50": _number(row.p50),
            "y_value_20": _number(row.p20),
            "y_value_80": _number(row.p80),
            "extra_benchmark_config_str": json.dumps(dict(row.config), sort_keys=True),
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "limit_us": _number(row.limit_us),
            "fraction_of_limit": _number(row.fraction),
            "bytes": _number(row.n_bytes),
            "flops": _number(row.flops),
            "ratio_vs_bf16": _number(row.ratio),
            "rel_err": _number(row.error),
            "seed": self.seed,
            "note": " ".join(row.note.split())[:300],
            **self.machine,
        }


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def machine_of(path: Path) -> dict[str, str]:
    """GPU, versions and dates (the first, or "first to last") of a CSV file; {} when it has no row."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    dates = sorted({row["timestamp"][:10] for row in rows})
    names = ("gpu_name", "version", "torch", "triton", "driver", "seed")
    return {name: rows[0][name] for name in names} | {"dates": " to ".join(sorted({dates[0], dates[-1]}))}


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "gpu_name": torch.cuda.get_device_name() if cuda else f"CPU {platform.machine()}",
        "version": _release("rqat"),
        "torch": torch.__version__,
        "triton": _release("triton"),
        "driver": _driver() if cuda else "",
    }


def compact(rows: Iterable[Row], *, most: int = 9000) -> str:
    """The rows as a short text table of at most `most` characters: a line per operation, config and provider.

    A cell reads "x:time share-of-limit ratio". Checks are counted, and shown only where they failed; a reason that many
    rows share is told once.
    """
    lines: dict[tuple[str, ...], list[str]] = {}
    reasons: dict[tuple[str, str, str], int] = {}
    passed: dict[str, int] = {}
    for row in rows:
        if row.note.startswith("RED"):
            key = (row.op, str(row.x), row.note)
            reasons[key] = reasons.get(key, 0) + 1
        elif row.p50 is None:
            key = (row.op, row.provider, row.note)
            reasons[key] = reasons.get(key, 0) + 1
        elif row.mode == "check":
            passed[row.op] = passed.get(row.op, 0) + 1
        else:
            metric = "" if row.metric in ("speed", "rate", "time") else row.metric
            unit = "" if row.unit == "us" else row.unit
            config = ",".join(str(value) for value in row.config.values())
            lines.setdefault((row.op, row.mode, metric, config, row.provider, unit), []).append(_cell(row))
    text = [" ".join(filter(None, key)) + "| " + " ".join(cells) for key, cells in lines.items()]
    text += [f"{op} {who}: {note[:180]}" + (f" ({count} times)" if count > 1 else "")
             for (op, who, note), count in reasons.items()]  # fmt: skip
    if passed:
        text.insert(0, "checks passed: " + ", ".join(f"{op} {count}" for op, count in passed.items()))
    whole = "\n".join(text)
    return whole if len(whole) <= most else whole[:most] + "\n... (all rows are in the CSV file)"


def _cell(row: Row) -> str:
    text = f"{row.x}:" if row.x_name else ""
    text += f"{row.p50:.4g}" if (row.p50 or 0) < 1e4 else f"{row.p50:.0f}"
    if row.fraction is not None:
        text += f" {row.fraction:.0%}"
    if row.ratio is not None and row.ratio != 1:
        text += f" {row.ratio:.2f}x"
    return text + ";"


def _row(cells: Mapping[str, str]) -> Row:
    def number(name: str) -> float | None:
        return float(cells[name]) if cells[name] else None

    x: float | str = cells["x_value"]
    with contextlib.suppress(ValueError):
        x = float(cells["x_value"])
    return Row(
        op=cells["kernel_name"],
        provider=cells["kernel_provider"],
        mode=cells["kernel_operation_mode"],
        metric=cells["metric_name"],
        unit=cells["metric_unit"],
        x_name=cells["x_name"],
        x_label=cells["x_label"],
        x=int(x) if isinstance(x, float) and x.is_integer() else x,
        config=json.loads(cells["extra_benchmark_config_str"] or "{}"),
        p50=number("y_value_50"),
        p20=number("y_value_20"),
        p80=number("y_value_80"),
        limit_us=number("limit_us"),
        n_bytes=number("bytes"),
        flops=number("flops"),
        ratio=number("ratio_vs_bf16"),
        error=number("rel_err"),
        note=cells["note"],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        module = __import__(package) if package == "rqat" else None
        return getattr(module, "__version__", "")


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return ""
