"""`--device`, and CUDA_VISIBLE_DEVICES: what stays visible, without a GPU to look at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat import RqatError
from rqat.cli import device
from rqat.cli.app import build


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with three GPUs, as its driver shows them."""
    for number in range(3):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
    monkeypatch.setattr(device, "GPUS", tmp_path)
    monkeypatch.setenv(device.VISIBLE, "")
    monkeypatch.delenv(device.VISIBLE)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "name", "left"),
    [
        (None, "cuda", "0"),
        (None, "cuda:2", "2"),
        ("2,0", "cuda:1", "0"),
        ("GPU-1f,GPU-2e", "cuda:0", "GPU-1f"),
        ("1,-1,2", "cuda", "1"),
        (None, "cpu", ""),
    ],
)
def test_one_device_is_left(three: Path, monkeypatch: pytest.MonkeyPatch, visible: str, name: str, left: str) -> None:
    if visible is not None:
        monkeypatch.setenv(device.VISIBLE, visible)
    assert device.choose(name) == name
    assert os.environ[device.VISIBLE] == left
    assert device.likely_device() == ("cuda" if left else "cpu")


def test_what_is_not_there_is_told(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda:3", "gpu", "cuda:x"):
        with pytest.raises(
            RqatError, match=rf"--device: there is no '{name}' here. Known: cpu, cuda:0, cuda:1, cuda:2"
        ):
            device.choose(name)
    monkeypatch.setenv(device.VISIBLE, "1,-1,2")
    with pytest.raises(RqatError, match=r"no 'cuda:1' here \(CUDA_VISIBLE_DEVICES is '1,-1,2'\). Known: cpu, cuda:0"):
        device.choose("cuda:1")
    assert device.choose(None) is None
    assert os.environ[device.VISIBLE] == "1,-1,2"


def test_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "GPUS", tmp_path / "none")
    monkeypatch.setenv(device.VISIBLE, "0")
    assert device.likely_device() == "cpu"
    result = CliRunner().invoke(build(), ["plan", "quickstart", "--device", "cuda"])
    assert result.exit_code == 2
    assert "--device: there is no 'cuda' here" in result.stderr
