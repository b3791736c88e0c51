"""Which implementation runs, and the tables of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rqat_kernels import dispatch

TABLES = sorted((Path(dispatch.__file__).parent / "measured").glob("*.json"))


def test_cpu_tensors_never_reach_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    assert not dispatch.use_triton(torch.randn(2))


class OnCuda:
    """What `use_triton` looks at of a tensor on a GPU."""

    is_cuda = True
    device = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "switch", "there", "expected"),
    [((9, 0), "", True, True), ((8, 0), "", True, True), ((7, 5), "", True, False), ((9, 0), "torch", True, False),
     ((9, 0), "", False, False)],
)  # fmt: skip
def test_kernels_run_on_gpus_that_know_their_instructions(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], switch: str, there: bool, expected: bool
) -> None:
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setenv(dispatch.SWITCH, switch)
    assert dispatch.use_triton(OnCuda()) is expected  # type: ignore[arg-type]
    if expected:
        assert not dispatch.use_triton(OnCuda(), torch.randn(1)), "one tensor on the CPU is enough for torch"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA H200", "h200"),
        ("Tesla V100-SXM2-16GB", "tesla-v100-sxm2-16gb"),
    ],
)
def test_a_gpu_has_one_file_name(name: str, slug: str) -> None:
    assert dispatch.gpu_slug(name) == slug


def test_a_gpu_without_a_table_gets_that_of_one_alike_or_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "default.json").write_text(json.dumps({"op": {"rows": 3}}))
    (tmp_path / "measured" / "h200.json").write_text(json.dumps({"op": {"rows": 7}}))
    (tmp_path / "measured" / "h100-80gb-hbm3.json").write_text(json.dumps({"op": {"rows": 5}}))
    monkeypatch.setattr(dispatch, "files", lambda package: tmp_path)
    dispatch._table.cache_clear()
    try:
        for gpu, capability, rows in (
            ("NVIDIA H200", (9, 0), 7), ("NVIDIA GH200 480GB", (9, 0), 5), ("NVIDIA L4", (8, 9), 3)
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, gpu=gpu: gpu)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
            assert dispatch.measured("op", torch.device("cuda")) == {"rows": rows}
        assert dispatch.measured("op", torch.device("cpu")) == {"rows": 3}
        assert dispatch.measured("unknown", torch.device("cpu")) == {}
    finally:
        dispatch._table.cache_clear()


def test_every_table_is_of_known_operations() -> None:
    operations = {path.parent.name for path in Path(dispatch.__file__).parent.glob("*/__init__.py")}
    assert TABLES
    for path in TABLES:
        table = json.loads(path.read_text(encoding="utf-8"))
        assert set(table) <= operations, path.name


def test_work_in_pieces_has_one_thread_and_what_follows_has_them_all_again() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with dispatch.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="broken"), dispatch.one_thread():
            raise ValueError("broken")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
