"""Finds, for each shape, width and number of rows, the fastest way to cut a packed linear layer on this GPU.

    python kernels/bench/tune_packed_linear.py --seconds 200 --out DIR

All kernels are compiled first, by many processes. Then each candidate is checked against the reference and timed in a
graph that rotates over distinct weights of 256 MB, so that none is in the cache. What was found so far is written after
every shape: `packed_linear.json` in DIR holds what goes under "packed_linear" in `rqat_kernels/measured/<gpu>.json`,
`tune_packed_linear.csv` every time taken. The table at the end adds up the four layers of a block, against cuBLAS.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.shapes import GROUP, LINEARS, Linear
from bench.timing import copies_for
from rqat_kernels.packed_linear.choose import PROCESSORS, SHARED_BYTES, SLAB, Config, shared_bytes
from rqat_kernels.packing import PackedWeight

BITS = (2, 4, 3)
ROWS = (1, 8, 16, 64, 32)
TOLERANCE = 4e-3
"""Relative L2 error: one rounding to bfloat16, 1.7e-3, and room for another where the dense route is tried."""


def candidates(rows: int) -> list[Config]:
    """All ways to cut the work that are worth compiling, the most promising first."""
    if rows <= 8:
        skinny = [Config(*cut) for cut in ((16, 8, 2), (32, 8, 2), (16, 4, 3), (32, 4, 3), (16, 4, 2), (32, 4, 2))]
        skinny += [Config(16, 8, 3), Config(16, 2, 3)]
        tall = [(64, 4, 3), (64, 4, 5), (32, 2, 4), (128, 8, 3)]
    elif rows <= 16:
        skinny = [Config(32, 4, 2), Config(16, 4, 2), Config(16, 4, 3)]
        tall = [(64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 8, 3)]
    else:
        skinny = []
        tall = [(64, 4, 2), (64, 4, 3), (128, 8, 2), (128, 8, 3)]
    return [*skinny, *(Config(block, warps, stages, variant="tall") for block, warps, stages in tall)]


def launches(config: Config, out: int, width: int, rows: int, bits: int) -> Iterator[Config]:
    """The same kernel with the splits and overlaps that make sense for a shape."""
    slabs = -(-width // SLAB)
    together = config.warps if config.variant == "skinny" else 1
    if shared_bytes(config, rows, bits) > SHARED_BYTES or together >= 2 * slabs:
        return
    programs = -(-out // config.block)
    for splits in (1, 2, 3, 4, 6, 8):
        turns = -(-slabs // (together * splits))
        if -(-slabs // (together * turns)) != splits or (splits > 1 and not splittable(config)):
            continue
        if splits > 1 and programs * splits > 4 * PROCESSORS:
            continue
        yield replace(config, splits=splits)
        if splits == 1 and overlaps(rows):
            yield replace(config, pdl=True)


def splittable(config: Config) -> bool:
    """Whether partial sums are tried: not where eight warps share a row of slabs already."""
    return config.variant == "tall" or config.warps < 8


def overlaps(rows: int) -> bool:
    """Whether launches that overlap are tried: where a launch is a good part of the time."""
    return rows <= 16


def random_weight(linear: Linear, bits: int) -> PackedWeight:
    """Random codes, scales and zero points."""
    codes = torch.randint(0, 2**bits, (linear.out, linear.inp), device="cuda", dtype=torch.uint8)
    scale = (torch.rand(linear.out, linear.inp // GROUP, device="cuda") * 0.1 + 0.01).to(torch.bfloat16)
    zero = torch.randint(0, 2**bits, scale.shape, device="cuda")
    return PackedWeight.from_codes(codes, scale, zero, bits)


def copy_of(weight: PackedWeight) -> PackedWeight:
    """The same weight at another place in memory."""
    extra = None if weight.extra is None else weight.extra.clone()
    return replace(weight, words=weight.words.clone(), extra=extra, params=weight.params.clone())


def compile_some(work: Sequence[tuple[int, int, Config]]) -> int:
    """Runs configurations once on a small weight, which leaves their machine code in Triton's cache."""
    from rqat_kernels.packed_linear.kernel import packed_linear

    done = 0
    weights = {bits: random_weight(Linear("", "", 256, 8192), bits) for bits in BITS}
    for bits, rows, config in work:
        x = torch.zeros(rows, 8192, device="cuda", dtype=torch.bfloat16)
        try:
            packed_linear(x, weights[bits], None, config)
            torch.cuda.synchronize()
            done += 1
        except Exception as error:
            print(f"{bits} bits, {rows} rows, {config}: {str(error).splitlines()[0][:120]}", flush=True)
    return done


def compile_all(bits: Sequence[int], rows: Sequence[int], processes: int) -> None:
    """Compiles every kernel of `candidates`, with and without partial sums and overlap."""
    work: list[tuple[int, int, Config]] = []
    for width in bits:
        for count in sorted({max(8, count) for count in rows}):
            for config in candidates(count):
                if shared_bytes(config, count, width) > SHARED_BYTES:
                    continue
                work.append((width, count, config))
                if splittable(config):
                    work.append((width, count, replace(config, splits=2)))
                if overlaps(count):
                    work.append((width, count, replace(config, pdl=True)))
    start = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        done = sum(pool.map(compile_some, [work[place::processes] for place in range(processes)]))
    print(f"{done} of {len(work)} kernels compiled in {time.time() - start:.0f} s", flush=True)


def microseconds(call: Callable[[int], Any], copies: int, rounds: int = 7) -> float:
    """Median time of a call in a graph of many, with a cold cache."""
    calls = max(20, copies)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call(0)
        stream.synchronize()
        graph.capture_begin()
        try:
            for turn in range(calls):
                call(turn % copies)
        finally:
            graph.capture_end()
        taken = []
        for _ in range(rounds):
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            graph.replay()
            last.record()
            last.synchronize()
            taken.append(first.elapsed_time(last) * 1e3 / calls)
    torch.cuda.current_stream().wait_stream(stream)
    return sorted(taken[1:])[(rounds - 1) // 2]


def tune(
    shapes: Sequence[Linear], bits: Sequence[int], rows: Sequence[int], seconds: float, out: Path | None = None
) -> list[dict[str, Any]]:
    """Times every launch of every cell until the time is up.

    Returns:
        A mapping per cell: shape, bits, rows, us, config, gb_per_s, cublas_us, ratio; the most telling cells first.
    """
    deadline = time.time() + seconds
    found: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    base: dict[tuple[str, int], float] = {}
    models = list(dict.fromkeys(linear.model for linear in shapes))
    for batch in [(count, model) for count in rows for model in models]:
        count, model = batch
        for linear in (linear for linear in shapes if linear.model == model):
            x = torch.randn(count, linear.inp, device="cuda", dtype=torch.bfloat16)
            if time.time() > deadline:
                return found
            base[linear.label, count] = cublas(linear, x)
            for width in bits:
                if time.time() > deadline:
                    return found
                cell = best(linear, width, x, every)
                if cell is None:
                    continue
                cell |= {"cublas_us": base[linear.label, count], "ratio": base[linear.label, count] / cell["us"]}
                found.append(cell)
                config = " ".join(f"{name}={value}" for name, value in cell["config"].items())
                print(
                    f"{cell['shape']:12} b{width} M{count:<3} {cell['us']:7.2f} us {cell['gb_per_s']:5.0f} GB/s "
                    f"x{cell['ratio']:.2f}  {config}",
                    flush=True,
                )
            if out is not None:
                write(out, found, every)
    return found


def cublas(linear: Linear, x: torch.Tensor) -> float:
    """Microseconds of the 16-bit layer."""
    copies = copies_for(linear.out * linear.inp * 2)
    weights = [torch.randn(linear.out, linear.inp, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return microseconds(lambda i: torch.nn.functional.linear(x, weights[i]), copies)


def best(linear: Linear, bits: int, x: torch.Tensor, every: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The fastest launch of a cell; all that were timed are added to `every`."""
    from rqat_kernels.packed_linear.kernel import packed_linear
    from rqat_kernels.packing import dequantize_packed

    rows, weight = x.shape[0], random_weight(linear, bits)
    count = copies_for(weight.nbytes)
    copies = [weight, *(copy_of(weight) for _ in range(count - 1))]
    wanted = x.double() @ dequantize_packed(weight, torch.float32).double().T
    work = [launch for config in candidates(rows) for launch in launches(config, linear.out, linear.inp, rows, bits)]
    calls: dict[Config, Callable[[int], torch.Tensor]] = {}
    for config in work:
        calls[config] = partial(lambda config, i: packed_linear(x, copies[i], None, config), config)
    if rows > 16:
        dense = Config(0, 0, 0, variant="dense")
        calls[dense] = lambda i: torch.nn.functional.linear(x, dequantize_packed(copies[i], x.dtype))
    times: dict[Config, float] = {}
    for config, call in calls.items():
        try:
            error = float((call(0).double() - wanted).norm() / wanted.norm())
            if not error < TOLERANCE:
                print(f"WRONG {linear.label} b{bits} M{rows} {config}: relative error {error:.2g}", flush=True)
                continue
            times[config] = microseconds(call, count)
        except Exception as error:
            print(f"{linear.label} b{bits} M{rows} {config}: {str(error).splitlines()[0][:120]}", flush=True)
            torch.cuda.synchronize()
    cell = {"shape": linear.label, "out": linear.out, "inp": linear.inp, "bits": bits, "rows": rows}
    every += [cell | {"us": took} | asdict(config) for config, took in times.items()]
    if not times:
        return None
    config = min(times, key=lambda key: times[key])
    return cell | {"us": times[config], "config": asdict(config), "gb_per_s": weight.nbytes / times[config] / 1e3}


def write(out: Path, found: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]]) -> None:
    """The winners as `measured` reads them, and every time taken."""
    configs = {f"b{c['bits']}-m{c['rows']}-n{c['out']}-k{c['inp']}": c["config"] for c in found}
    (out / "packed_linear.json").write_text(json.dumps({"configs": configs}, indent=1), encoding="utf-8")
    if every:
        with (out / "tune_packed_linear.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(every[0]))
            table.writeheader()
            table.writerows(every)


def summary(found: Sequence[dict[str, Any]]) -> str:
    """A line per model, width and rows: the four layers together, against cuBLAS."""
    lines = ["model bits rows  us of the layers      sum  cublas  ratio"]
    for key in dict.fromkeys((c["shape"].partition(".")[0], c["bits"], c["rows"]) for c in found):
        cells = [c for c in found if (c["shape"].partition(".")[0], c["bits"], c["rows"]) == key]
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
    parser.add_argument("--models", nargs="+", default=["8b", "0.6b", "4b"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    compile_all(options.bits, options.rows, max(1, (os.cpu_count() or 2) - 2))
    shapes = [linear for linear in LINEARS if linear.model in options.models]
    left = options.seconds - (time.time() - start) - 2
    found = tune(shapes, options.bits, options.rows, left, options.out)
    print(summary(found))
    print(f"{len(found)} cells in {time.time() - start:.0f} s; {options.out / 'packed_linear.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
