"""Starts the servers on small models of every scheme, and writes down what becomes of them: rqat/assets/servers.csv.

    python -m tests.servers.environments        builds their environments
    python -m tests.servers.table [SERVER[:FORMAT[:SCHEME]]...]   those, or all

A probe is given a file of prompts and folders. It says that its server is there, and then for each folder that it
loads, with the log-probabilities of the tokens after every prompt and a text that it wrote, or that it does not, in the
server's own words. Lines are written as they come, so that an interrupted run keeps what it has found.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from rqat import Context, Scheme
from rqat.contracts import ModelShape
from rqat.registry import Registry
from rqat.servers import TABLE

from .environments import SERVERS, environment, python_of
from .files import export, last_logits, prompts, save_rounded

SCHEMES = [
    f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in ("g32", "g64", "g128", "-row") for sym in ("", "-sym")
]
SCHEMES.sort(key=lambda spelling: "g32" in spelling or "row" in spelling)  # what is used most is tried first
COLUMNS = ("server", "version", "format", "bits", "zeros", "group", "outcome", "difference", "words", "how")

PLAIN = "bf16"
"""The format without codes: no scheme matters to who loads it, so it has no lines; test_servers.py tries it."""

TOLERANCE = 0.05
"""Largest difference of log-probabilities, as a share of the largest: llama.cpp and kernels for CPUs round inputs of
quantized layers to 8 bits, others compute in 16. Another order of codes or a wrong zero point gives 0.5 and more."""

AT_ONCE = 4
"""Folders that one process of a server is given."""

SCHEME = ("bits", "zeros", "group")


def accepted(format_name: str, spelling: str) -> bool:
    """Whether our exporter writes a scheme exactly."""
    registry, scheme = Registry.discover(), Scheme.parse(spelling)
    card = registry.card("exporter", format_name)
    shape = ModelShape("small", "qwen3", {"a": (256, 256)}, 256, 512, 2, True, 256)
    context = Context(schemes={"a": scheme}, model=shape)
    return not list(registry.options(card, {}).check(context))


def probe(name: str, folders: Iterable[Path], asked: list[Any]) -> list[dict[str, Any]]:
    """What a server says of folders; one that ends its process loads nothing, and says so by its last line.

    Raises:
        RuntimeError: the server itself does not start, which says nothing of any file.
    """
    server, python = SERVERS[name], python_of(name)
    assert python is not None, f"{name} is not built: python -m tests.servers.environments {name}"
    found: list[dict[str, Any]] = []
    folders = list(folders)
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "prompts.json"
        file.write_text(json.dumps(asked))
        while len(found) < len(folders):
            rest = folders[len(found) : len(found) + AT_ONCE]
            command = [python, Path(__file__).parent / server.probe, file, *rest]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment(server), cwd=work, check=False
            )
            if "READY" not in done.stdout.splitlines():
                raise RuntimeError(f"{name} does not start: {done.stderr[-2000:]}")
            answers = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            found += map(json.loads, answers)
            if len(answers) < len(rest):
                last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no word"]
                found.append({"loads": False, "words": f"the process ended: {last[0].strip()[:200]}"})
    return found


def difference(answer: dict[str, Any], expected: torch.Tensor) -> float:
    """The largest difference of log-probabilities, as a share of the largest, after every prompt."""
    wanted = expected.log_softmax(-1)
    largest = max(
        (abs(wanted[row, int(token)].item() - value)
         for row, each in enumerate(answer["logprobs"]) for token, value in each.items()),
        default=float("nan"),
    )  # fmt: skip
    return largest / float(wanted.abs().max())


def rows(name: str, format_name: str, work: Path, schemes: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """One line of the table for every scheme that a format holds, some at a time."""
    held = [spelling for spelling in schemes if accepted(format_name, spelling)]
    for start in range(0, len(held), AT_ONCE):
        yield _rows(name, format_name, work, held[start : start + AT_ONCE])


def _rows(name: str, format_name: str, work: Path, schemes: Iterable[str]) -> list[dict[str, Any]]:
    server, folders, expected = SERVERS[name], {}, {}
    for spelling in schemes:
        start = work / "starts" / spelling
        if not (start / "config.json").exists():
            save_rounded(start, spelling)
        folders[spelling] = work / format_name / spelling
        if not (folders[spelling] / "README.md").exists():
            export(start, folders[spelling], format_name)
        expected[spelling] = last_logits(start)
    found = []
    for spelling, answer in zip(folders, probe(name, folders.values(), prompts()), strict=True):
        scheme, apart = Scheme.parse(spelling), None
        if answer["loads"]:
            apart = difference(answer, expected[spelling])
            if not apart < TOLERANCE:
                answer = {"loads": False, "words": f"it answers otherwise: log-probabilities are {apart:.0%} apart"}
        found.append({
            "server": name,
            "version": server.version,
            "format": format_name,
            "bits": scheme.bits,
            "zeros": "fixed" if scheme.symmetric else "free",
            "group": "row" if scheme.group < 0 else scheme.group,
            "outcome": "loads" if answer["loads"] else "refuses",
            "difference": f"{apart:.2g}" if answer["loads"] else "",
            "words": said(answer.get("words", "")),
            "how": "run",
        })  # fmt: skip
        print(*found[-1].values(), sep=",", flush=True)
    return found


def said(words: str) -> str:
    """A refusal without what vLLM and pydantic put around it: each kernel with its reasons, the configuration."""
    return re.sub(r"^\d+ validation errors? for \w+ Value error, | \[type=.*| Reasons: .*", "", words)


def write(found: list[dict[str, Any]]) -> None:
    """Puts lines into the table in place of those of the same server, format and scheme."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    new = {_key(row) for row in found}
    kept = [row for row in kept if _key(row) not in new or row["how"] == "read"]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *found], key=_place))


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in ("server", "format", *SCHEME))


def _place(row: dict[str, Any]) -> tuple[int, ...]:
    """Servers as they stand above, their formats, narrow schemes first; what was read comes last."""
    read, server = row["how"] == "read", row["server"]
    formats = SERVERS[server].formats if server in SERVERS else ("compressed-tensors", "gptq", "awq")
    group = 1 << 20 if row["group"] == "row" else int(row["group"])
    position = list(SERVERS).index(server) if server in SERVERS else len(SERVERS)
    return (read, position, formats.index(row["format"]), int(row["bits"]), group, row["zeros"] == "fixed")


if __name__ == "__main__":
    where = Path(os.environ.get("RQAT_SERVERS_WORK", tempfile.mkdtemp()))
    for given in sys.argv[1:] or SERVERS:
        server_name, form_name, chosen = [*given.split(":"), "", ""][:3]
        for form in [form_name] if form_name else SERVERS[server_name].formats:
            if form != PLAIN:
                for some in rows(server_name, form, where, [chosen] if chosen else SCHEMES):
                    write(some)
