"""Finds, for each shape, width and number of rows, the fastest way to cut a packed linear layer on this GPU.

    python kernels/bench/tune_packed_linear.py --seconds 200 --out DIR

Kernels are compiled by many processes, later ones while the first are timed. Each candidate is checked against
the reference and timed in a graph that rotates over distinct weights of 256 MB, so that none is in the cache. What was
found so far is written again and again: `packed_linear.json` in DIR holds what goes under "packed_linear" in
`rqat_kernels/measured/<gpu>.json`, `tune_packed_linear.csv` every time taken. The table at the end adds up the four
layers of a block, against cuBLAS. Ctrl-C ends it early.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.shapes import GROUP, LINEARS, Linear
from bench.timing import copies_for, in_graph
from rqat_kernels.packed_linear.choose import PROCESSORS, SHARED_BYTES, SLAB, Config, shared_bytes
from rqat_kernels.packing import PackedWeight

BITS = (2, 4, 3)
ROWS = (1, 8, 16, 64, 128, 32, 256)
TOLERANCE = 4e-3
"""Relative L2 error: one rounding to bfloat16, 1.7e-3, and room for another where the dense route is tried."""

CELL = ("shape", "bits", "rows", "us", "cublas_us", "gb_per_s")
"""What results show of a cell, beside the GPU: its fastest launch and cuBLAS in bfloat16."""


def candidates(rows: int) -> list[Config]:
    """All ways to cut the work that are worth compiling: block, across, warps, stages."""
    if rows <= 8:
        cuts = [(64, 2, 4, 3), (64, 1, 4, 3), (32, 4, 4, 3), (32, 2, 4, 3), (16, 4, 4, 3), (16, 4, 4, 2), (16, 2, 2, 3)]
        return [Config(*cut) for cut in (*cuts, (32, 1, 2, 3))] + [Config(64, 1, 4, 3, variant="stream")]
    if rows <= 16:
        # Warps with 32 rows each (the first four) share the dot with ones.
        cuts = [(128, 1, 4, 3), (64, 2, 4, 3), (64, 2, 4, 2), (64, 1, 2, 3)]
        return [Config(*cut) for cut in (*cuts, (64, 1, 4, 3), (32, 2, 4, 3), (32, 4, 4, 2))]
    if rows > 64:
        cuts = [(64, 1, 4, 2), (64, 1, 4, 3), (128, 1, 8, 2), (128, 1, 8, 3), (256, 1, 16, 3), (256, 2, 16, 2)]
        return [Config(*cut, variant="tiled") for cut in cuts]
    # Few stages leave room for more programs on a processor.
    found = [Config(64, 1, 4, stages, variant="wide") for stages in (3, 2, 1)]
    found += [Config(128, 1, 8, stages, variant="wide") for stages in (2, 1)]
    cuts = [(64, 1, 4, 2), (64, 1, 4, 3), (64, 2, 4, 2), (64, 2, 4, 3), (64, 4, 4, 2), (128, 4, 8, 2)]
    if rows <= 32:
        found += [Config(64, 1, 4, 3), Config(32, 2, 4, 2)]
        cuts += [(64, 4, 4, 3), (128, 1, 4, 3), (128, 2, 4, 3)]
    else:
        cuts += [(128, 1, 8, 3), (128, 2, 4, 2), (256, 1, 8, 3)]
    return found + [Config(*cut, variant="tiled") for cut in cuts]


def launches(config: Config, out: int, width: int, rows: int, bits: int) -> Iterator[Config]:
    """The same kernel with the splits and overlaps that make sense for a shape."""
    slabs = -(-width // SLAB)
    if shared_bytes(config, rows, bits) > SHARED_BYTES or config.slabs >= 2 * slabs:
        return
    programs = -(-out // config.block)
    if config.variant == "stream":
        yield from (replace(config, splits=each) for each in (1, 2, 3) if each == 1 or programs > each * PROCESSORS)
        return
    for splits in (1, 2, 3, 4, 6, 8):
        turns = -(-slabs // (config.slabs * splits))
        if -(-slabs // (config.slabs * turns)) != splits or (splits > 1 and config.across >= 8):
            continue
        if splits > 1 and programs * splits > 4 * PROCESSORS:
            continue
        yield replace(config, splits=splits)
        if (splits == 1 or rows > 8) and overlaps():
            for ahead in (0, 1, 4) if turns > 1 else (0, 1):
                yield replace(config, splits=splits, pdl=True, ahead=ahead)


def overlaps() -> bool:
    """Whether launches that overlap are tried: on Hopper."""
    return torch.cuda.get_device_capability() >= (9, 0)


def random_weight(linear: Linear, bits: int) -> PackedWeight:
    """Random codes, scales and zero points."""
    codes = torch.randint(0, 2**bits, (linear.out, linear.inp), device="cuda", dtype=torch.uint8)
    scale = (torch.rand(linear.out, linear.inp // GROUP, device="cuda") * 0.1 + 0.01).to(torch.bfloat16)
    zero = torch.randint(0, 2**bits, scale.shape, device="cuda")
    return PackedWeight.from_codes(codes, scale, zero, bits)


@cache
def small_weight(bits: int) -> PackedWeight:
    """A weight that every kernel runs on in no time."""
    return random_weight(Linear("", "", 256, 8192), bits)


def compile_some(work: Sequence[tuple[int, int, Config]]) -> int:
    """Runs configurations once on a small weight, which leaves their machine code in Triton's cache."""
    from rqat_kernels.packed_linear.kernel import packed_linear

    done = 0
    for bits, rows, config in work:
        x = torch.zeros(rows, 8192, device="cuda", dtype=torch.bfloat16)
        try:
            packed_linear(x, small_weight(bits), None, config)
            torch.cuda.synchronize()
            done += 1
        except Exception as error:
            print(f"{bits} bits, {rows} rows, {config}: {str(error).splitlines()[0][:120]}", flush=True)
    return done


def to_compile(bits: int, rows: int) -> list[tuple[int, int, Config]]:
    """Every kernel of `candidates`, with and without partial sums and overlap."""
    work: list[tuple[int, int, Config]] = []
    for config in candidates(rows):
        if shared_bytes(config, rows, bits) > SHARED_BYTES:
            continue
        work.append((bits, rows, config))
        if config.variant == "stream":
            continue
        if config.across < 8:
            work.append((bits, rows, replace(config, splits=2)))
        if overlaps():
            work.append((bits, rows, replace(config, pdl=True)))
            if rows > 8:
                work.append((bits, rows, replace(config, splits=2, pdl=True)))
    return work


def cells(models: Sequence[str], bits: Sequence[int], rows: Sequence[int]) -> list[tuple[str, int, int]]:
    """Model, bits and rows, the most telling first: 2 bits of the largest model, then what is least far from it."""
    far = (
        {"8b": 0.0, "0.6b": 2.0, "4b": 3.0},
        {2: 0.0, 4: 2.5, 3: 2.7},
        {1: 0.0, 8: 0.5, 16: 1.1, 64: 1.2, 128: 1.3, 32: 2.1, 256: 2.2},
    )
    every = [(model, width, count) for model in models for width in bits for count in rows]
    return sorted(every, key=lambda cell: sum(place.get(key, 3.0) for place, key in zip(far, cell, strict=True)))


def tune(
    models: Sequence[str], bits: Sequence[int], rows: Sequence[int], seconds: float, out: Path
) -> list[dict[str, Any]]:
    """Compiles and times every launch of every cell until the time is up, or Ctrl-C.

    Returns:
        A mapping per cell: shape, bits, rows, us, config, gb_per_s, cublas_us, ratio; the most telling cells first.
    """
    deadline = time.time() + seconds
    found: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    base: dict[tuple[str, int], float] = {}
    order = cells(models, bits, rows)
    processes = max(1, (os.cpu_count() or 2) - 2)
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        # Up to 8 rows are the same code. What comes later is compiled while the first cells are timed.
        compiled: dict[tuple[int, int], list[Future[int]]] = {}
        for _, width, count in order:
            if (width, max(8, count)) not in compiled:
                work = to_compile(width, max(8, count))
                jobs = [pool.submit(compile_some, [one]) for one in work]
                compiled[width, max(8, count)] = jobs
        for model, width, count in order:
            for job in compiled[width, max(8, count)]:
                job.result(timeout=max(0.0, deadline - time.time()))
            for linear in (linear for linear in LINEARS if linear.model == model):
                if time.time() > deadline:
                    return found
                x = torch.randn(count, linear.inp, device="cuda", dtype=torch.bfloat16)
                if (linear.label, count) not in base:
                    base[linear.label, count] = cublas(linear, x)
                cell = best(linear, width, x, every, deadline)
                if cell is not None:
                    us = base[linear.label, count]
                    found.append(cell | {"cublas_us": us, "ratio": us / cell["us"]})
                    print(line(found[-1]), flush=True)
            write(out, found, every)
    except (KeyboardInterrupt, TimeoutError):
        print("cut off", flush=True)
    finally:
        write(out, found, every)
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def line(cell: dict[str, Any]) -> str:
    """A cell for the table that is printed on the way."""
    config = " ".join(str(value) for value in cell["config"].values())
    speed = f"{cell['us']:7.2f} us {cell['gb_per_s']:5.0f} GB/s x{cell['ratio']:.2f}"
    return f"{cell['shape']:12} b{cell['bits']} M{cell['rows']:<3} {speed}  {config}"


def cublas(linear: Linear, x: torch.Tensor) -> float:
    """Microseconds of the 16-bit layer."""
    copies = copies_for(linear.out * linear.inp * 2)
    weights = [torch.randn(linear.out, linear.inp, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return in_graph(lambda i: torch.nn.functional.linear(x, weights[i]), copies).p50


def best(
    linear: Linear, bits: int, x: torch.Tensor, every: list[dict[str, Any]], deadline: float
) -> dict[str, Any] | None:
    """The fastest launch of a cell; all that were timed are added to `every`."""
    from rqat_kernels.packed_linear.kernel import packed_linear
    from rqat_kernels.packing import dequantize_packed

    rows, weight = x.shape[0], random_weight(linear, bits)
    count = copies_for(weight.nbytes)
    copies = [weight, *(weight.clone() for _ in range(count - 1))]
    wanted = x.double() @ dequantize_packed(weight, torch.float32).double().T
    work = [launch for config in candidates(rows) for launch in launches(config, linear.out, linear.inp, rows, bits)]
    calls: dict[Config, Callable[[int], torch.Tensor]] = {}
    for config in work:
        calls[config] = partial(lambda config, i: packed_linear(x, copies[i], None, config), config)
    if rows >= 16:
        dense = Config(0, 0, 0, 0, variant="dense")
        calls[dense] = lambda i: torch.nn.functional.linear(x, dequantize_packed(copies[i], x.dtype))
    times: dict[Config, float] = {}
    for config, call in calls.items():
        if time.time() > deadline:
            break
        try:
            error = float((call(0).double() - wanted).norm() / wanted.norm())
            if not error < TOLERANCE:
                print(f"WRONG {linear.label} b{bits} M{rows} {config}: relative error {error:.2g}", flush=True)
                continue
            times[config] = in_graph(call, count).p50
        except Exception as error:
            print(f"{linear.label} b{bits} M{rows} {config}: {str(error).splitlines()[0][:120]}", flush=True)
            torch.cuda.synchronize()
    torch.cuda.empty_cache()  # graphs leave what they kept their sums in
    cell = {"shape": linear.label, "out": linear.out, "inp": linear.inp, "bits": bits, "rows": rows}
    every += [cell | {"us": took} | asdict(config) for config, took in times.items()]
    if not times:
        return None
    config = min(times, key=lambda key: times[key])
    return cell | {"us": times[config], "config": asdict(config), "gb_per_s": weight.nbytes / times[config] / 1e3}


def write(out: Path, found: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]]) -> None:
    """The winners as `measured` reads them and as results show them, and every time taken."""
    configs = {f"b{c['bits']}-m{c['rows']}-n{c['out']}-k{c['inp']}": c["config"] for c in found}
    table = {"configs": configs, "rows": most_rows(every)}
    (out / "packed_linear.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    gpu = torch.cuda.get_device_name()
    cells = [{"gpu": gpu} | {name: cell[name] for name in CELL} for cell in found]
    for name, lines in (("tune_packed_linear.csv", every), ("packed_cells.csv", cells)):
        if not lines:
            continue
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, list(lines[0]))
            rows.writeheader()
            rows.writerows(lines)


def most_rows(every: Sequence[dict[str, Any]]) -> dict[str, int]:
    """By bits: the most rows at which packed kernels beat a dense copy and cuBLAS, over the shapes that were timed."""
    most: dict[str, int] = {}
    for bits, rows in sorted({(row["bits"], row["rows"]) for row in every if row["variant"] == "dense"}):
        packed = dense = 0.0
        for shape in {row["shape"] for row in every if (row["bits"], row["rows"]) == (bits, rows)}:
            cell = [row for row in every if (row["bits"], row["rows"], row["shape"]) == (bits, rows, shape)]
            packed += min((row["us"] for row in cell if row["variant"] != "dense"), default=1e9)
            dense += min((row["us"] for row in cell if row["variant"] == "dense"), default=1e9)
        if packed < dense:
            most[str(bits)] = rows
    return most


def summary(found: Sequence[dict[str, Any]]) -> str:
    """A line per model, width and rows: the four layers together, against cuBLAS."""
    lines = ["model bits rows  us of the layers      sum  cublas  ratio"]
    for key in dict.fromkeys((c["shape"].rpartition(".")[0], c["bits"], c["rows"]) for c in found):
        cells = [c for c in found if (c["shape"].rpartition(".")[0], c["bits"], c["rows"]) == key]
        if len(cells) < 4:
            continue
        each = " ".join(f"{c['us']:.1f}" for c in cells)
        total, base = sum(c["us"] for c in cells), sum(c["cublas_us"] for c in cells)
        lines.append(f"{key[0]:5} {key[1]:3} {key[2]:4}  {each:22} {total:6.1f} {base:6.1f}  {base / total:5.2f}")
    return "\n".join(lines)


def main() -> int:
    """Compiles, tunes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=200, help="time in all, compilation included")
    parser.add_argument("--out", type=Path, required=True, help="folder for what was found")
    parser.add_argument("--bits", type=int, nargs="+", default=list(BITS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--models", nargs="+", default=["8b", "0.6b", "4b"], choices=["8b", "0.6b", "4b"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    found = tune(options.models, options.bits, options.rows, options.seconds - 3, options.out)
    print(summary(found))
    print(f"{len(found)} cells in {time.time() - start:.0f} s; {options.out / 'packed_linear.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
