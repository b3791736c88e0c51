"""Machine code of the kernels, compiled for GPUs that need not be there: see `static/sass.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are compiled with it; the dev extra has it")

SCRIPT = Path(__file__).parent / "static" / "sass.py"


def compiled(**more: str) -> list[dict[str, object]]:
    environment = os.environ | {"TRITON_INTERPRET": "0", "RQAT_JSON": "1"} | more
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def broken(reports: list[dict[str, object]]) -> dict[str, object]:
    return {f"{r['case']} sm_{r['capability']}": r["broken"] for r in reports if r["broken"]}


@pytest.fixture(scope="module")
def reports() -> list[dict[str, object]]:
    """Of Hopper alone, which takes half of the time."""
    return compiled(RQAT_CAPABILITY="90")


@pytest.mark.slow
def test_every_case_keeps_its_gates(reports: list[dict[str, object]]) -> None:
    assert not broken(reports)


@pytest.mark.long
def test_every_case_keeps_its_gates_on_every_gpu() -> None:
    reports = compiled()
    assert {report["capability"] for report in reports} >= {80, 90}
    assert not broken(reports)


@pytest.mark.slow
def test_every_operation_with_a_kernel_has_cases(reports: list[dict[str, object]]) -> None:
    kernels = Path(__file__).parents[2] / "kernels" / "rqat_kernels"
    operations = {path.parent.name for path in kernels.glob("*/kernel.py")}
    assert operations
    assert operations <= {str(report["case"]).partition("-")[0] for report in reports}
