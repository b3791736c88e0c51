"""Quantizes a real model by rqat and by its peers, and judges all of them alike: a CSV file, a table and a plot.

    python -m tests.peers.environments                                      builds the peers' environments
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK             the usual methods at 4, 3 and 2 bits
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK --cells rqat-gptq:w3 gptqmodel:w3   these, in this order
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK --show      the table of what is there

Everybody gets the same token ids (64 x 512 of GSM8K's training problems), float32, as many threads, and a process of
its own, one at a time. A cell that is done is not done again: what was ended is run again. RQAT_DATA names the folder
of the texts. `smol` has groups of 64, `coder-0.5b` of 128; a cell of either takes minutes to hours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqat.storage import write_json
from tests.servers.environments import Server, environment, python_of

from .cells import METHODS, ORIGINAL, OURS, USUAL, Cell, Result, Results, every
from .environments import PEERS
from .report import write_report
from .texts import CALIBRATION, CALIBRATION_ROWS, DOMAINS, packed

WIDTHS = (4, 3, 2)

JUDGED_ROWS = 8
"""Rows of each domain that everybody is judged on."""

BATCH = 8
"""Calibration rows that run through a model together, where a tool lets one say so."""

HERE = Path(__file__).parent
US = Server((), "quantize_ours.py", (), "working tree")


@dataclass
class Comparison:
    """A comparison of methods on one model.

    Attributes:
        model: folder of the original.
        work: folder of everything that is made.
        data: folder of the texts.
        threads: that each process computes with.
        judged_rows: of each domain.
    """

    model: Path
    work: Path
    data: Path
    threads: int = 1
    judged_rows: int = JUDGED_ROWS

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokens = self.work / "tokens.json"
        rows = packed(self.model, self.data / CALIBRATION, CALIBRATION_ROWS)
        self.rows = {domain: packed(self.model, self.data / file, self.judged_rows) for domain, file in DOMAINS.items()}
        write_json(self.tokens, rows)
        digest = hashlib.sha256(json.dumps([rows, self.rows]).encode()).hexdigest()[:16]
        asked = {"model": self.model.name, "tokens": digest, "threads": self.threads}
        (self.work / "cells").mkdir(exist_ok=True)
        self.results = Results(self.work / "cells", asked)
        self._states = self.work / f"original-{digest}.safetensors"

    def run(self, cells: Sequence[Cell], *, again: bool = False, say: Callable[[str], None] = print) -> None:
        """Makes what is missing, the original first, and writes the report after every cell.

        Args:
            again: try those that failed once more.
        """
        for cell in [ORIGINAL, *cells]:
            asked = self.results.asked(cell, version_of(cell))
            found = self.results.find(cell, asked)
            if found is None or (again and "failed" in found):
                found = self.results.keep(cell, asked, self._made(cell))
            say(f"{cell}: " + (found.get("failed") or f"KL {found['kl_in']:.4f} / {found['kl_out']:.4f}"))
            self.report()

    def report(self) -> str:
        """Writes CSV, table and plot of what is there; the table."""
        return write_report(self.work, list(self.results.all()))

    def _made(self, cell: Cell) -> Result:
        from .judge import dequantized, judged  # which take torch

        date = time.strftime("%Y-%m-%d", time.gmtime())
        if cell == ORIGINAL:
            return judged(self.model, None, self.rows, self._states) | {"date": date}
        folder = self.work / "models" / str(cell)
        shutil.rmtree(folder, ignore_errors=True)
        method = METHODS[cell.name]
        job = {
            "model": str(self.model), "tokens": str(self.tokens), "folder": str(folder), "batch": BATCH,
            "bits": cell.bits, "group": cell.group, "method": method.method, "settings": dict(method.settings),
        }  # fmt: skip
        result = self._quantized(cell, job) | {"date": date, "machine": machine()}
        if "failed" not in result:
            mine = dequantized(folder, cell.bits, cell.group)
            result |= judged(self.model, mine, self.rows, self._states)
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def _quantized(self, cell: Cell, job: dict[str, Any]) -> Result:
        """What the script of a cell's tool measured of itself, or its last words."""
        python, server = interpreter(METHODS[cell.name].tool)
        if python is None:
            return {"failed": f"not built: python -m tests.peers.environments {METHODS[cell.name].tool}"}
        folder = self.work / "logs" / str(cell)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "job.json", job)
        own = environment(server, **{name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
        if python == Path(sys.executable):
            own["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)  # the same rqat
        with (folder / "log.txt").open("w") as log:
            command = [python, HERE / server.probe, folder / "job.json"]
            done = subprocess.run(command, stdout=log, stderr=log, cwd=folder, env=own, check=False)
        return result_in((folder / "log.txt").read_text(errors="replace"), done.returncode)


def result_in(log: str, status: int) -> Result:
    """The result at the end of what a script printed; where there is none, or it ended otherwise, its last words."""
    lines = [line for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("RESULT ")]
    if status == 0 and told:
        return dict(json.loads(told[-1].removeprefix("RESULT ")))
    return {"failed": f"status {status}: {lines[-1].strip()[:200] if lines else 'no word'}"}


def interpreter(tool: str) -> tuple[Path | None, Server]:
    """The Python that runs a tool, None where its environment is not built, and how it is run."""
    if tool == OURS:
        return Path(sys.executable), US
    return python_of(tool, PEERS), PEERS[tool]


def version_of(cell: Cell) -> str:
    """The version of a cell's tool; ours is a digest of the sources that quantize, so that a change is measured."""
    if cell == ORIGINAL:
        return ""
    method = METHODS[cell.name]
    if method.tool != OURS:
        return PEERS[method.tool].version
    root, digest = HERE.parent.parent, hashlib.sha256()
    names = {method.method, "gptq"} if method.method == "block-ap" else {method.method}  # which begins with it
    modules = [f"plugins/rqat_{name.replace('-', '_')}" for name in sorted(names)]
    own = [pattern for module in modules for pattern in (f"{module}.py", f"{module}/*.py")]
    for pattern in (*own, "rqat/model/*.py", "kernels/rqat_kernels/*/*.py"):
        for file in sorted(root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> str:
    """Processor and system, as the table names them."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the original, a Hugging Face checkpoint")
    parser.add_argument("-o", "--work", type=Path, required=True, help="folder of results; run again, it goes on")
    parser.add_argument("--group", type=int, default=64, help="weights that share a scale")
    parser.add_argument("--cells", nargs="+", default=[], metavar="METHOD:wN", help="these, in this order")
    parser.add_argument("--methods", nargs="+", default=list(USUAL), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS), choices=[2, 3, 4, 8], metavar="BITS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=JUDGED_ROWS, help="rows of each domain to judge on")
    parser.add_argument("--again", action="store_true", help="try those that failed once more")
    parser.add_argument("--show", action="store_true", help="no more than the table of what is there")
    given = parser.parse_args()
    data = os.environ.get("RQAT_DATA")
    if not data:
        parser.error("RQAT_DATA is not set: the folder with gsm8k/ and text_ood/.")
    if not (given.model / "config.json").exists():
        parser.error(f"'{given.model}' is no checkpoint: it has no config.json.")
    try:
        cells = [Cell.parse(text, given.group) for text in given.cells]
    except ValueError as error:
        parser.error(f"--cells: {error}")
    comparison = Comparison(given.model, given.work, Path(data), given.threads, given.rows)
    if not given.show:
        comparison.run(cells or every(given.methods, given.widths, given.group), again=given.again)
    print(comparison.report())


if __name__ == "__main__":
    main()
