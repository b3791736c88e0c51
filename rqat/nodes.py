"""Several machines that do one run together, in a run folder that all of them see.

The same command is given on each, with its number. The first does everything; where a step runs in several processes
(`rqat.launcher`), it says so in a file of the run folder, and the others join it, each with its processes, by torch's
static rendezvous at an address of the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import RqatError
from .storage import read_json, write_json

MARK = ".together.json"
"""In the run folder: the step that is to be joined, by name and fingerprint, or that the run has ended."""

LOOK_S = 1.0
"""Seconds between two looks at it."""


@dataclass(frozen=True)
class Nodes:
    """This machine among those that do a run together; alone unless told otherwise.

    Attributes:
        rank: of this machine; 0 leads.
        count: of all.
        address: host and port of the first, free there, by which the others find it.
    """

    rank: int = 0
    count: int = 1
    address: str = ""

    @classmethod
    def parse(cls, node: str, address: str) -> Nodes:
        """From `--node 1/2` and `--rendezvous host:29500`; both empty is one machine.

        Raises:
            RqatError: they are not of that form.
        """
        if not node and not address:
            return cls()
        rank, slash, count = node.partition("/")
        sound = slash and rank.isdecimal() and count.isdecimal() and int(rank) < int(count)
        if not sound:
            raise RqatError(
                f"--node {node or 'is missing'}: it is this machine's number and how many there are.",
                hint="Of two machines: --node 0/2 on the first, --node 1/2 on the other.",
            )
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdecimal()):
            raise RqatError(
                f"--rendezvous {address or 'is missing'}: it is a host and a port of the first machine.",
                hint="On every machine the same, such as: --rendezvous first.local:29500",
            )
        return cls(int(rank), int(count), address)

    @contextmanager
    def leading(self, folder: Path) -> Iterator[None]:
        """Around a run of the first of several: the others learn of its end."""
        try:
            yield
        finally:
            if self.count > 1 and folder.is_dir():
                write_json(folder / MARK, {"ended": time.time()})

    def call(self, folder: Path, step: str, fingerprint: str) -> None:
        """Has the others join a step."""
        if self.count > 1 and not self.rank:
            write_json(folder / MARK, {"step": step, "fingerprint": fingerprint})

    def calls(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Name and fingerprint of every step that the first calls for, until its run has ended.

        What is there at first of a run that has ended is another's.
        """
        before = read_json(folder / MARK)
        before = before if isinstance(before, dict) and "ended" in before else None
        while True:
            told = read_json(folder / MARK)
            if not isinstance(told, dict) or told == before:
                time.sleep(LOOK_S)
            elif "ended" in told:
                return
            else:
                yield str(told.get("step")), str(told.get("fingerprint"))
                while read_json(folder / MARK) == told:
                    time.sleep(LOOK_S)
