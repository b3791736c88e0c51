"""Where a command computes, and with how many threads beside a GPU."""

from __future__ import annotations

import pytest
import torch

from rqat.model import devices


@pytest.mark.parametrize(
    ("device", "asked", "there", "expected"),
    [
        ("cuda", None, 32, devices.HOST_THREADS),
        ("cuda", None, 2, 2),
        ("cuda", "32", 32, None),
        ("cpu", None, 32, None),
    ],
)
def test_beside_a_gpu_the_host_takes_few_threads(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: str | None, there: int, expected: int | None
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(devices, "default_device", lambda: device)
    monkeypatch.setattr(torch, "get_num_threads", lambda: there)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert devices.device_to_work_on() == device
    assert taken == ([] if expected is None else [expected])
