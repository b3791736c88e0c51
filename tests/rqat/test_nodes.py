"""Several machines: how they are told of, how one learns what the first is at, and that they end with what one has."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from rqat import nodes
from rqat.errors import RqatError
from rqat.nodes import MARK, Nodes
from rqat.storage import write_json
from tests.rqat.test_processes import SHORT, TIMEOUT_S, qat, quantized, started
from tests.training import digests

__all__ = ["quantized"]  # a fixture


def test_a_machine_is_told_of_by_its_number_and_the_address_of_the_first() -> None:
    assert Nodes.parse("", "") == Nodes()
    assert Nodes.parse("1/4", "[::1]:29500") == Nodes(1, 4, "[::1]:29500")


@pytest.mark.parametrize(
    ("node", "address", "told"),
    [
        ("2/2", "first:29500", "--node 2/2: it is this machine's number and how many there are."),
        ("one", "first:29500", "--node one: "),
        ("", "first:29500", "--node is missing: "),
        ("0/2", "", "--rendezvous is missing: it is a host and a port of the first machine."),
        ("0/2", "first", "--rendezvous first: "),
    ],
)
def test_what_does_not_say_so_is_refused(node: str, address: str, told: str) -> None:
    with pytest.raises(RqatError) as refused:
        Nodes.parse(node, address)
    assert str(refused.value).startswith(told)


def test_others_hear_of_every_step_and_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the end of a run before theirs."""
    monkeypatch.setattr(nodes, "LOOK_S", 0.01)
    write_json(tmp_path / MARK, {"ended": 1.0})
    heard: list[tuple[str, str]] = []
    other = threading.Thread(target=lambda: heard.extend(Nodes(1, 2, "x:1").calls(tmp_path)))
    other.start()
    first = Nodes(0, 2, "x:1")
    with first.leading(tmp_path):
        for step in ("03-train-kd", "05-train-grpo"):
            time.sleep(0.1)
            first.call(tmp_path, step, f"print of {step}")
        time.sleep(0.1)
    other.join(timeout=10)
    assert heard == [("03-train-kd", "print of 03-train-kd"), ("05-train-grpo", "print of 05-train-grpo")]


@pytest.mark.long
def test_two_machines_end_with_what_two_processes_have(quantized: Path, tmp_path: Path) -> None:
    """Both are this one, with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared, one = (Path(shutil.copytree(quantized, tmp_path / name)) for name in ("shared", "one"))
    machines = [[*qat(shared, SHORT, processes=1), "--node", f"{k}/2", "--rendezvous", address] for k in (0, 1)]
    with subprocess.Popen(machines[1], stderr=subprocess.PIPE, text=True) as other:
        done = started(machines[0])
        assert done.returncode == 0, done.stderr
        _, said = other.communicate(timeout=TIMEOUT_S)
    assert other.returncode == 0, said
    assert "joins as machine 1 of 2" in said
    assert "The run has ended; joined: 03-train-kd." in said
    assert started(qat(one, SHORT)).returncode == 0
    assert digests(shared / "03-train-kd") == digests(one / "03-train-kd")
