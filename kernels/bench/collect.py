"""Rows out of what scripts beside run.py leave behind: packed_cells.csv, decode_speed.csv and gptq-<model>.json."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from .table import Row

PROVIDERS = {"transformers, bf16": "transformers bf16", "engine, bf16": "rqat bf16"}
"""What a table calls them; packed weights are "rqat"."""


def collected(folder: Path, gpu: str, reads: float | None = None) -> list[Row]:
    """Rows of all such files below `folder` that were measured on `gpu`, which `reads` so many TB/s."""
    rows = [row for path in sorted(folder.rglob("packed_cells.csv")) for row in packed(path, gpu, reads)]
    rows += [row for path in sorted(folder.rglob("decode_speed.csv")) for row in decoding(path, gpu)]
    return rows + [row for path in sorted(folder.rglob("gptq-*.json")) for row in gptq(path, gpu)]


def packed(path: Path, gpu: str, reads: float | None) -> list[Row]:
    """The fastest launch of every layer, width and number of rows that tuning found, and cuBLAS beside it.

    The limit is the time that reading the packed bytes takes.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["gpu"] == gpu]
    rows = {}
    for line in lines:
        us, other, count = float(line["us"]), float(line["cublas_us"]), int(line["rows"])
        config = {"shape": line["shape"]}
        n_bytes = us * float(line["gb_per_s"]) * 1e3
        for provider, took in ((f"rqat {line['bits']} bits", us), ("cublas bf16", other)):
            row = Row("packed_linear", provider, "forward", x_name="M", x=count, config=config)
            row.p50 = row.p20 = row.p80 = took
            row.note = "tune_packed_linear.py: the fastest launch, one median"
            if provider != "cublas bf16":
                row.n_bytes, row.ratio = n_bytes, other / us
                row.limit_us = n_bytes / reads / 1e6 if reads else None
            rows[line["shape"], count, provider] = row
    return list(rows.values())


def decoding(path: Path, gpu: str) -> list[Row]:
    """Tokens per second of new tokens alone, by batch and provider; ratios are over transformers."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["gpu"] == gpu]
    base = {
        (x["model"], x["head"], x["batch"], x["context"]): float(x["tokens_per_s"])
        for x in lines
        if x["provider"].startswith("transf")
    }
    rows = []
    for line in lines:
        batch, rate = int(line["batch"]), float(line["tokens_per_s"])
        slowest, fastest = (1e3 * batch / float(line[name]) for name in ("slowest_ms", "fastest_ms"))
        config = {"model": line["model"], "bits": int(line["bits"]), "head": int(line["head"])}
        config["context"] = int(line["context"]) if line["context"].isdigit() else line["context"]
        other = base.get((line["model"], line["head"], line["batch"], line["context"]))
        provider = PROVIDERS.get(line["provider"], "rqat")
        row = Row("decoding", provider, "decode", "rate", "tok/s", "batch", line["batch"], batch, config)
        row.p50, row.p20, row.p80, row.ratio = rate, slowest, fastest, rate / other if other else None
        rows.append(row)
    return rows


def gptq(path: Path, gpu: str) -> list[Row]:
    """The whole model and one block, in seconds."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["gpu"] != gpu:
        return []
    measured = len(facts["blocks_s"])
    blocks = round(facts["whole_s"] / facts["per_block_s"])
    rest = facts["blocks_s"][1:] or facts["blocks_s"]
    config = {"model": facts["model"], "tokens": 128 * 2048, "blocks measured": measured, "bits": 2}
    note = f"{measured} of {blocks} blocks measured; all at the mean of those behind the first"
    whole = Row("whole_gptq", "rqat", "full", "time", "s", "blocks", str(blocks), blocks, config, note=note)
    whole.p50, whole.p20, whole.p80 = facts["whole_s"], blocks * min(rest), blocks * max(rest)
    block = Row("whole_gptq", "rqat", "block", "time", "s", "blocks", "1", 1, config)
    block.p50, block.p20, block.p80 = facts["per_block_s"], min(rest), max(rest)
    return [whole, block]
