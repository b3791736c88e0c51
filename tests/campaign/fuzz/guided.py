"""Bytes changed by libFuzzer, which sees what part of rqat each input reaches: `atheris` for one kind of file.

    python -m tests.campaign.fuzz.guided KIND COUNT SEED FOLDER

What is found goes into FOLDER, an input and its traceback; counts.json there has the counts so far, since libFuzzer
ends the process itself.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rqat", "rqat_data", "rqat_math", "rqat_arith"]):
    from .kinds import Bench
    from .run import CORPUS, quiet, try_one

LONGEST = 20_000
"""Bytes of an input, but where a good one has more."""


def main(name: str, count: int, seed: int, folder: Path) -> None:
    """Never returns."""
    quiet()
    bench_folder = tempfile.mkdtemp(prefix="fuzz-bench-")  # removed by whoever called
    kind = Bench(Path(bench_folder)).kinds()[name]
    seeds = folder / "seeds"
    seeds.mkdir(parents=True)
    good = kind.good if isinstance(kind.good, bytes) else kind.good.encode()
    for number, data in enumerate([good, *(path.read_bytes() for path in (CORPUS / name).glob("*"))]):
        (seeds / str(number)).write_bytes(data)
    counts: Counter[str] = Counter()
    places: set[str] = set()

    def one(data: bytes) -> None:
        verdict, trace = try_one(kind, data)
        counts["found" if trace else verdict] += 1
        counts["inputs"] += 1
        where = " ".join(line.strip() for line in trace.splitlines() if "/rqat" in line)[-160:]
        if trace and where not in places:
            places.add(where)
            digest = hashlib.sha256(data).hexdigest()[:12]
            (folder / f"{digest}.input").write_bytes(data)
            (folder / f"{digest}.trace").write_text(f"{verdict}\n{trace}")
        if counts["inputs"] % 20 == 0 or counts["inputs"] >= count:
            (folder / "counts.json").write_text(json.dumps(counts))

    arguments = [
        f"-runs={count}",
        f"-seed={seed + 1}",
        f"-max_len={max(LONGEST, len(good))}",
        "-timeout=0",
        "-rss_limit_mb=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, "-verbosity=0", str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
