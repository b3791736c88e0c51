"""Makes files of every kind and reads them: `python -m tests.campaign.fuzz.run --each 750 --seed 1`.

In three ways: good files changed a little; by hypothesis, anew from what such a file may hold; by atheris (libFuzzer),
bytes changed by what they reach. The last two where they are installed: `pip install -e '.[fuzz]'`.

Prints a table and, for everything found, the kind, the seed that makes it again and the end of its traceback. What is
found is kept by `--keep` in `corpus/<kind>/<digest>`, which the everyday suite reads.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rqat.errors import RqatError
from rqat.quiet import hush, quiet_imports

from .commands import Commands
from .kinds import Bench, Kind

CORPUS = Path(__file__).parent / "corpus"
SECONDS, WAITED = 10, 60
"""What a reading may take of a processor, and of time where it only waits: on a busy machine no less is read."""

MEMORY = 2 << 30
"""What a reading may take, with all that is imported."""

WAYS = ("changed", "hypothesis", "atheris")

GUIDED = ("safetensors", "parquet", "jsonl", "problems", "step", "manifest", "results", "set", "recipe", "config")
"""Kinds for atheris: their reading is rqat's own to the bytes, or cheap enough to be tried often."""


class Hung(BaseException):
    """A reading took longer than `SECONDS`, or waited for longer than `WAITED`."""


def try_one(kind: Kind, data: bytes) -> tuple[str, str]:
    """Reads one input; "valid", "refused" or what is wrong, and the traceback of the latter."""
    before = peak_bytes()
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
    if peak_bytes() > max(before, MEMORY):
        return "memory", f"{peak_bytes() / 1e9:.1f} GB were held, {before / 1e9:.1f} GB before"
    return "valid", ""


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _watched() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hung

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAITED)}
    before = {sent: signal.signal(sent, stop) for sent, _ in timers.values()}
    for timer, (_, after_s) in timers.items():
        signal.setitimer(timer, after_s)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for sent, handler in before.items():
            signal.signal(sent, handler)


def inputs(name: str, kind: Kind, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Changed inputs of a kind, each under the seed that makes it."""
    for number in range(count):
        own = f"{name}/{seed}/{number}"
        yield own, kind.mutate(kind.good, random.Random(own))


@dataclass
class Row:
    """What came of one kind of file, made in one way; `slowest` is in seconds of a processor."""

    name: str
    way: str
    counts: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    slowest: float = 0.0

    def __str__(self) -> str:
        shown = "".join(f"{self.counts[key]:>9}" for key in ("inputs", "valid", "refused", "found"))
        return f"{self.name:<26}{self.way:<12}{shown}{self.seconds:>8.1f}{self.slowest:>9.2f}"


HEAD = f"{'kind':<26}{'made':<12}{'inputs':>9}{'valid':>9}{'refused':>9}{'found':>9}{'s':>8}{'slowest':>9}"


class Search:
    """Tries inputs and keeps what is found.

    Args:
        each: inputs of every kind, made in every way.
        keep: found inputs go into the corpus.
    """

    def __init__(self, seed: int, each: int, *, keep: bool) -> None:
        self.seed, self.each, self.keep = seed, each, keep
        self.found: dict[tuple[str, str], str] = {}
        self.rows: list[Row] = []

    def changed(self, name: str, kind: Kind) -> None:
        """Good files changed a little."""
        row = Row(name, "changed")
        for own, data in inputs(name, kind, self.seed, self._count(kind)):
            self._try(row, kind, data, own)
        self._tell(row)

    def structured(self, name: str, kind: Kind, strategy: Any) -> None:
        """By hypothesis."""
        from .structured import each

        row = Row(name, "hypothesis")
        each(strategy, self.seed, self._count(kind), lambda data: self._try(row, kind, data, f"{name}/{self.seed}"))
        self._tell(row)

    def guided(self, name: str) -> None:
        """By atheris, in a process of its own."""
        row = Row(name, "atheris")
        with tempfile.TemporaryDirectory(prefix="fuzz-guided-") as folder:
            command = [sys.executable, "-m", "tests.campaign.fuzz.guided", name, str(self.each), str(self.seed), folder]
            environment = {**os.environ, "TMPDIR": folder}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            counts = Path(folder, "counts.json")
            row.counts.update(json.loads(counts.read_text()) if counts.exists() else {})
            for path in Path(folder).glob("*.input"):
                self._keep(name, path.read_bytes(), f"{name}, atheris", path.with_suffix(".trace").read_text())
        if row.counts["inputs"] < self.each:
            self.found[name, "atheris"] = f"{name}: atheris ended with {done.returncode}\n{done.stderr[-1500:]}"
        self._tell(row)

    def _count(self, kind: Kind) -> int:
        return max(1, int(self.each * kind.share))

    def _try(self, row: Row, kind: Kind, data: bytes, own: str) -> None:
        start = time.process_time()
        verdict, trace = try_one(kind, data)
        row.slowest = max(row.slowest, time.process_time() - start)
        row.counts["found" if trace else verdict] += 1
        row.counts["inputs"] += 1
        if trace:
            self._keep(row.name, data, f"{own}: {verdict}", trace)

    def _keep(self, name: str, data: bytes, own: str, trace: str) -> None:
        where = " ".join(line.strip() for line in trace.splitlines() if "/rqat" in line)[-160:]
        if (name, where) in self.found:
            return
        self.found[name, where] = f"{own}\n{trace[-1500:]}"
        if self.keep:
            (CORPUS / name).mkdir(parents=True, exist_ok=True)
            (CORPUS / name / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)

    def _tell(self, row: Row) -> None:
        row.seconds = time.perf_counter() - row.began
        self.rows.append(row)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=750, help="inputs of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only these")
    parser.add_argument("--way", action="append", choices=WAYS, help="only these")
    parser.add_argument("--keep", action="store_true", help="keep what is found in the corpus")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="that try side by side")
    given = parser.parse_args()
    ways, found, tried, most = given.way or WAYS, dict[tuple[str, str], str](), 0, 0
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="fuzz-bench-") as folder:
        # Not forked: what a process that has trained has set up for gradients, its forks may not use.
        tried_by = ProcessPoolExecutor(given.processes, get_context("spawn"), _prepare, (folder,))
        with tried_by:
            searches = [
                tried_by.submit(_search, way, name, given.seed, given.each, given.keep)
                for way, name in tried_by.submit(_named).result()
                if way in ways and not (given.kind and name not in given.kind)
            ]
            for one in as_completed(searches):
                search, held_bytes = one.result()
                print(*search.rows, sep="\n", flush=True)
                found |= search.found
                tried, most = tried + sum(row.counts["inputs"] for row in search.rows), max(most, held_bytes)
    for told in found.values():
        print(f"\n{told}")
    missing = [name for name in ("hypothesis", "atheris") if name in ways and not _installed(name)]
    print(f"\nseed {given.seed}: {tried} inputs, {len(found)} kinds of fault, {most / 1e9:.2f} GB")
    print(*(f"{name} is not installed; its inputs were not made." for name in missing), sep="\n")
    return 1 if found else 0


_prepared: dict[str, Any] = {}
"""Of a process that tries inputs: the kinds by name, and the strategies."""


def _prepare(folder: str) -> None:
    """Makes, once in a process, what files are read with."""
    quiet()
    own = Path(folder, str(os.getpid()))
    own.mkdir()
    bench = Bench(own)
    _prepared["kinds"] = {**bench.kinds(), **Commands(bench).kinds()}
    _prepared["strategies"] = {}
    if _installed("hypothesis"):
        from .structured import strategies

        _prepared["strategies"] = strategies(str(bench.model))


def _named() -> list[tuple[str, str]]:
    """Ways and kinds; whole commands, which take longest, first, so that nobody waits for the last of them."""
    guided = GUIDED if _installed("atheris") else ()
    by_way = {"changed": reversed(_prepared["kinds"]), "hypothesis": _prepared["strategies"], "atheris": guided}
    return [(way, name) for way, names in by_way.items() for name in names]


def _search(way: str, name: str, seed: int, each: int, keep: bool) -> tuple[Search, int]:
    """One kind in one way; what was found, and the most memory that this process has held."""
    search = Search(seed, each, keep=keep)
    if way == "changed":
        search.changed(name, _prepared["kinds"][name])
    elif way == "hypothesis":
        search.structured(name, _prepared["kinds"][name], _prepared["strategies"][name])
    else:
        search.guided(name)
    return search, peak_bytes()


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def quiet() -> None:
    """No warnings of what is read here."""
    quiet_imports()
    warnings.filterwarnings("ignore")
    hush("transformers", "datasets", "rqat", "huggingface_hub")


if __name__ == "__main__":
    sys.exit(main())
