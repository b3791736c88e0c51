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
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rqat.errors import RqatError
from rqat.quiet import hush, quiet_imports

from .commands import Commands
from .kinds import Bench, Kind

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10
MEMORY = 2 << 30
"""What a reading may take, with all that is imported."""

WAYS = ("changed", "hypothesis", "atheris")

GUIDED = ("safetensors", "parquet", "jsonl", "problems", "step", "manifest", "results", "set", "recipe", "config")
"""Kinds for atheris: their reading is rqat's own to the bytes, or cheap enough to be tried often."""


class Hung(BaseException):
    """A reading took longer than `SECONDS`."""


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


@dataclass
class Row:
    """What came of one kind of file, made in one way."""

    name: str
    way: str
    counts: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.perf_counter)
    slowest: float = 0.0

    def __str__(self) -> str:
        shown = "".join(f"{self.counts[key]:>9}" for key in ("inputs", "valid", "refused", "found"))
        return f"{self.name:<26}{self.way:<12}{shown}{time.perf_counter() - self.began:>8.1f}{self.slowest:>9.2f}"


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
        self.tried = 0

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
        start = time.perf_counter()
        verdict, trace = try_one(kind, data)
        row.slowest = max(row.slowest, time.perf_counter() - start)
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
        self.tried += row.counts["inputs"]
        print(row, flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=750, help="inputs of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="only these")
    parser.add_argument("--way", action="append", choices=WAYS, help="only these")
    parser.add_argument("--keep", action="store_true", help="keep what is found in the corpus")
    given = parser.parse_args()
    quiet()
    search, ways = Search(given.seed, given.each, keep=given.keep), given.way or WAYS
    print(HEAD)
    with tempfile.TemporaryDirectory(prefix="fuzz-bench-") as folder:
        bench = Bench(Path(folder))
        kinds = {**bench.kinds(), **Commands(bench).kinds()}
        made = _strategies(bench) if "hypothesis" in ways else {}
        for name, kind in kinds.items():
            if given.kind and name not in given.kind:
                continue
            if "changed" in ways:
                search.changed(name, kind)
            if name in made:
                search.structured(name, kind, made[name])
            if "atheris" in ways and name in GUIDED and _installed("atheris"):
                search.guided(name)
    for told in search.found.values():
        print(f"\n{told}")
    missing = [name for name in ("hypothesis", "atheris") if name in ways and not _installed(name)]
    print(
        f"\nseed {given.seed}: {search.tried} inputs, {len(search.found)} kinds of fault, {peak_bytes() / 1e9:.2f} GB"
    )
    print(*(f"{name} is not installed; its inputs were not made." for name in missing), sep="\n")
    return 1 if search.found else 0


def _strategies(bench: Bench) -> dict[str, Any]:
    if not _installed("hypothesis"):
        return {}
    from .structured import strategies

    return strategies(str(bench.model))


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def quiet() -> None:
    """No warnings of what is read here."""
    quiet_imports()
    warnings.filterwarnings("ignore")
    hush("transformers", "datasets", "rqat", "huggingface_hub")


if __name__ == "__main__":
    sys.exit(main())
