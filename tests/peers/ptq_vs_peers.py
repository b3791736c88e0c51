"""Quantizes a real model by rqat and by its peers, and judges all of them alike: a CSV file, a table and a plot.

    python -m tests.peers.environments                                      builds the peers' environments
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK             the usual methods at 4, 3 and 2 bits
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK --cells rqat-gptq:w3 gptqmodel:w3   these, in this order
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK --show      the table of what is there
    python -m tests.peers.ptq_vs_peers MODEL --group 64 -o WORK --device cuda --here --gsm8k 1319   on a GPU

Everybody gets the same token ids (64 x 512 of GSM8K's training problems), float32, as many threads, and a process of
its own, one at a time. A cell that is done is not done again: what was ended is run again. RQAT_DATA names the folder
of the texts. `smol` has groups of 64, `coder-0.5b` of 128; a cell of either takes minutes to hours of a CPU, and a
minute or a few of a GPU. With `--here` the peers are those that this interpreter imports, at whatever version, and no
environment is built: for a machine whose torch is given and that reaches no package index.
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

from rqat.errors import RqatError
from rqat.storage import write_json
from tests.servers.environments import Server, environment, python_of

from .cells import METHODS, ORIGINAL, OURS, USUAL, Cell, Result, Results, every
from .environments import PEERS, version_here
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
        device: "cpu" or "cuda", on which everybody quantizes and everything is judged.
        here: run the peers in this interpreter, not in environments of their own.
        problems: of GSM8K that every model is asked; 0 asks none.
        limit_s: seconds after which a cell is stopped; None waits.
    """

    model: Path
    work: Path
    data: Path
    threads: int = 1
    judged_rows: int = JUDGED_ROWS
    device: str = "cpu"
    here: bool = False
    problems: int = 0
    limit_s: float | None = None

    def __post_init__(self) -> None:
        # Whoever quantizes does so in a folder of its own.
        self.model, self.work = self.model.resolve(), self.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokens = self.work / "tokens.json"
        rows = packed(self.model, self.data / CALIBRATION, CALIBRATION_ROWS)
        self.rows = {domain: packed(self.model, self.data / file, self.judged_rows) for domain, file in DOMAINS.items()}
        write_json(self.tokens, rows)
        digest = hashlib.sha256(json.dumps([rows, self.rows]).encode()).hexdigest()[:16]
        asked = {"model": self.model.name, "tokens": digest, "threads": self.threads}
        asked |= {"device": self.device, "problems": self.problems}
        (self.work / "cells").mkdir(exist_ok=True)
        self.results = Results(self.work / "cells", asked)
        self._states = self.work / f"original-{digest}.safetensors"

    def run(self, cells: Sequence[Cell], *, again: bool = False, say: Callable[[str], None] = print) -> None:
        """Makes what is missing, the original first, and writes the report after every cell.

        Args:
            again: try those that failed once more.
        """
        for cell in [ORIGINAL, *cells]:
            asked = self.results.asked(cell, version_of(cell, here=self.here))
            found = self.results.find(cell, asked)
            if found is None or (again and "failed" in found):
                found = self.results.keep(cell, asked, self._made(cell))
            say(f"{cell}: " + (found.get("failed") or f"KL {found['kl_in']:.4f} / {found['kl_out']:.4f}"))
            self.report()

    def report(self) -> str:
        """Writes CSV, table and plot of what is there; the table."""
        return write_report(self.work, list(self.results.all()))

    def _made(self, cell: Cell) -> Result:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        if cell == ORIGINAL:
            return self._judged() | {"date": date}
        folder = self.work / "models" / str(cell)
        shutil.rmtree(folder, ignore_errors=True)
        method = METHODS[cell.name]
        job = {
            "model": str(self.model), "tokens": str(self.tokens), "folder": str(folder), "batch": BATCH,
            "bits": cell.bits, "group": cell.group, "method": method.method, "settings": dict(method.settings),
            "device": self.device,
        }  # fmt: skip
        result = self._quantized(cell, job) | {"date": date, "machine": machine(self.device)}
        if "failed" not in result:
            try:
                result |= self._judged(folder, cell)
            except (ValueError, RuntimeError, OSError, RqatError) as error:
                result["failed"] = f"not judged: {' '.join(str(error).split())[:200]}"
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def _judged(self, folder: Path | None = None, cell: Cell = ORIGINAL) -> Result:
        """Figures of a quantized checkpoint, or of the original."""
        from rqat.model.memory import give_back

        from .judge import dequantized, judged, loaded, solved  # which take torch

        whole = loaded(self.model, self.device)
        mine = dequantized(folder, cell.bits, cell.group, self.device) if folder else None
        found: Result = dict(judged(whole, mine, self.rows, self._states))
        if self.problems:
            found["accuracy"] = solved(whole if mine is None else mine, self.model, self.problems)
        del whole, mine
        give_back(self.device)  # the next to quantize is another process
        return found

    def _quantized(self, cell: Cell, job: dict[str, Any]) -> Result:
        """What the script of a cell's tool measured of itself, or its last words."""
        tool = METHODS[cell.name].tool
        python, server = interpreter(tool, here=self.here)
        if python is None:
            what = "not installed here" if self.here else f"not built: python -m tests.peers.environments {tool}"
            return {"failed": what}
        folder = self.work / "logs" / str(cell)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "job.json", job)
        own = environment(server, **{name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
        if self.device == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""  # some take a GPU where they see one
        if python == Path(sys.executable):
            own["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)  # the same rqat
        with (folder / "log.txt").open("w") as log:
            command = [python, HERE / server.probe, folder / "job.json"]
            try:
                done = subprocess.run(
                    command, stdout=log, stderr=log, cwd=folder, env=own, timeout=self.limit_s, check=False
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"stopped after {self.limit_s:g} s"}
        return result_in((folder / "log.txt").read_text(errors="replace"), done.returncode)


def result_in(log: str, status: int) -> Result:
    """The result at the end of what a script printed; where there is none, or it ended otherwise, its last words."""
    lines = [line for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("RESULT ")]
    if status == 0 and told:
        return dict(json.loads(told[-1].removeprefix("RESULT ")))
    return {"failed": f"status {status}: {lines[-1].strip()[:200] if lines else 'no word'}"}


def interpreter(tool: str, *, here: bool = False) -> tuple[Path | None, Server]:
    """The Python that runs a tool, None where there is none with it, and how it is run.

    Args:
        here: this one is to run it, not that of an environment of its own.
    """
    if tool == OURS:
        return Path(sys.executable), US
    if here:
        return Path(sys.executable) if version_here(tool) else None, PEERS[tool]
    return python_of(tool, PEERS), PEERS[tool]


def version_of(cell: Cell, *, here: bool = False) -> str:
    """The version of a cell's tool; ours is a digest of the sources that quantize, so that a change is measured."""
    if cell == ORIGINAL:
        return ""
    method = METHODS[cell.name]
    if method.tool != OURS:
        return (version_here(method.tool) or "") if here else PEERS[method.tool].version
    root, digest = HERE.parent.parent, hashlib.sha256()
    names = {method.method, "gptq"} if method.method == "block-ap" else {method.method}  # which begins with it
    modules = [f"plugins/rqat_{name.replace('-', '_')}" for name in sorted(names)]
    own = [pattern for module in modules for pattern in (f"{module}.py", f"{module}/*.py")]
    for pattern in (*own, "rqat/model/*.py", "kernels/rqat_kernels/*/*.py"):
        for file in sorted(root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def machine(device: str = "cpu") -> str:
    """Processor and system, as the table names them; or the GPU, and the torch that ran there."""
    if device != "cpu":
        import torch

        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to quantize and to judge")
    parser.add_argument("--here", action="store_true", help="peers that are installed in this very interpreter")
    parser.add_argument("--gsm8k", type=int, default=0, metavar="N", help="ask every model N of GSM8K's problems")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="stop a cell that takes longer to quantize")
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
    comparison = Comparison(
        given.model,
        given.work,
        Path(data),
        given.threads,
        given.rows,
        device=given.device,
        here=given.here,
        problems=given.gsm8k,
        limit_s=given.limit,
    )
    if not given.show:
        comparison.run(cells or every(given.methods, given.widths, given.group), again=given.again)
    print(comparison.report())


if __name__ == "__main__":
    main()
