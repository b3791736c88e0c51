"""Checks and times every kernel on this machine's GPU; writes a CSV file per part, plots and a short table.

    python kernels/bench/run.py --out DIR [--part 1|2|3] [--minutes 8] [--only OP] [--match PATTERN]

Correctness comes first, on odd shapes, with poisoned outputs, against float64; an operation that fails is reported and
not timed. Then the device's ceilings, then every operation against its limit and against what else there is. Rows are
written as they come, and each part ends within its minutes, so that a run cut off leaves a full table of what it did.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Runs the parts asked for; 1 when a check failed."""
    options = _options()
    if options.part is None:
        # A process per part: a part that loses the device does not take the others with it.
        calls = [[sys.executable, *sys.argv, f"--part={part}"] for part in (1, 2, 3)]
        return max(subprocess.run(call, check=False).returncode for call in calls)
    root = HERE.parents[1]
    sys.path[:] = [str(root), str(root / "plugins"), str(root / "kernels"), *(p for p in sys.path if p != str(HERE))]
    import torch

    from bench import registry, runner
    from bench.bench import Bench
    from bench.ceilings import measure
    from bench.table import Table, compact, machine
    from rqat_kernels.dispatch import gpu_slug

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        print("There is no GPU here. `--small` tries the bench itself on the CPU.", file=sys.stderr)
        return 2
    if options.only is not None and options.only not in registry.known():
        print(f"'{options.only}' is not measured. Known: {', '.join(registry.known())}.", file=sys.stderr)
        return 2
    facts = machine()
    part = options.part
    deadline = options.deadline or time.time() + 60 * options.minutes
    start = time.time()
    bench = Bench(device, seed=options.seed, rounds=3 if options.small else 15, small=options.small)
    path = options.out / f"{gpu_slug(facts['gpu_name'])}-part{part}.csv"
    table = Table(path, facts, seed=options.seed, resume=options.first > 0)
    print(f"part {part}: {registry.PARTS[part]}; {facts['gpu_name']}, torch {facts['torch']}", flush=True)
    for row in measure(bench):
        if options.first == 0:
            table.add(row)
    wanted = re.compile(options.match)
    work = [job for job in registry.jobs(part, options.only) if job.check or wanted.search(f"{job.op} {job.label}")]
    outcome = runner.run(work, bench, table, deadline, first=options.first)
    table.close()
    print(compact(table.rows))
    for title, labels in (("no time for", outcome.left), ("failed", outcome.failed)):
        if labels:
            print(f"{title} {len(labels)}: {'; '.join(labels)[:600]}")
    if outcome.red:
        print(f"RED, not timed: {', '.join(sorted(outcome.red))}")
    print(f"part {part} took {time.time() - start:.0f} s: {path}", flush=True)
    if outcome.lost is not None:
        runner.start_again(outcome.lost, deadline)
    if options.plots:
        from bench.plots import draw

        for drawn in draw(sorted(options.out.glob("*-part*.csv")), options.out):
            print(drawn)
    return int(bool(outcome.red))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV files and plots")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="one part only")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for each part (default 8)")
    parser.add_argument("--only", help="one operation only")
    parser.add_argument("--match", default="", help="only jobs whose name has this pattern, checks excepted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="CSV files only")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the bench itself")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
