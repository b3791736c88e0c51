"""Changes good files of every kind and reads them: `python -m tests.campaign.fuzz.run --each 800 --seed 1`.

Prints a table and, for everything found, the kind, the seed that makes it again and the end of its traceback. What is
found is kept in `corpus/<kind>/<digest>`, which the everyday suite reads.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from rqat.errors import RqatError
from rqat.quiet import hush, quiet_imports

from .kinds import Bench, Kind

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10
MEMORY = 2 << 30


class Hung(BaseException):
    """A reading took longer than `SECONDS`."""


def try_one(kind: Kind, data: bytes) -> tuple[str, str]:
    """Reads one input; "valid", "refused" or what is wrong, and the traceback of the latter."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder, "input")
        path.write_bytes(data)
        try:
            with _watched(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                kind.read(path)
        except RqatError as error:
            if error.exit_code != 2 or not error.message or "Traceback" in error.message:
                return "a refusal that is none", repr(error)
            return "refused", ""
        except Hung:
            return "hung", traceback.format_exc()
        except MemoryError:
            return "memory", traceback.format_exc()
        except Exception as error:
            return f"traceback {type(error).__name__}", traceback.format_exc()
    return "valid", ""


@contextmanager
def _watched() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def inputs(name: str, kind: Kind, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Changed inputs of a kind, each under the seed that makes it."""
    for number in range(count):
        own = f"{name}/{seed}/{number}"
        yield own, kind.mutate(kind.good, random.Random(own))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=800, help="inputs of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only these")
    parser.add_argument("--keep", action="store_true", help="keep what is found in the corpus")
    given = parser.parse_args()
    _quiet()
    found: dict[tuple[str, str, str], tuple[str, str, bytes]] = {}
    print(f"{'kind':<22}{'inputs':>8}{'valid':>8}{'refused':>9}{'found':>7}{'s':>8}{'slowest':>9}")
    with tempfile.TemporaryDirectory(prefix="fuzz-bench-") as folder:
        for name, kind in Bench(Path(folder)).kinds().items():
            if given.kind and name not in given.kind:
                continue
            counts: Counter[str] = Counter()
            began, slowest = time.perf_counter(), 0.0
            for own, data in inputs(name, kind, given.seed, given.each):
                start = time.perf_counter()
                verdict, trace = try_one(kind, data)
                slowest = max(slowest, time.perf_counter() - start)
                counts["found" if trace else verdict] += 1
                if trace:
                    where = " ".join(line.strip() for line in trace.splitlines() if "/rqat" in line)[-160:]
                    found.setdefault((name, verdict, where), (own, trace, data))
            shown = f"{counts['valid']:>8}{counts['refused']:>9}{counts['found']:>7}"
            took = time.perf_counter() - began
            print(f"{name:<22}{given.each:>8}{shown}{took:>8.1f}{slowest:>9.2f}", flush=True)
    for (name, verdict, _), (own, trace, data) in found.items():
        print(f"\n{name}: {verdict}, {own}\n{trace[-1500:]}")
        if given.keep:
            (CORPUS / name).mkdir(parents=True, exist_ok=True)
            (CORPUS / name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\n{len(found)} kinds of fault, {peak / 1e9:.2f} GB at most")
    return 1 if found or peak > MEMORY else 0


def _quiet() -> None:
    quiet_imports()
    warnings.filterwarnings("ignore")
    hush("transformers", "datasets", "rqat", "huggingface_hub")


if __name__ == "__main__":
    sys.exit(main())
