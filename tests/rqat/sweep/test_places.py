"""What a sweep says of memory beforehand: how many cells fit side by side, and what is the same for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rqat import preflight
from rqat.cli import sweep
from rqat.stage import Finding
from rqat.sweep.controller import Folders

GB = 10**9


@pytest.mark.parametrize(
    ("asked", "gpus", "there", "takes", "expected"),
    [
        (7, 1, 140 * GB, 45 * GB, 3),
        (8, 2, 140 * GB, 45 * GB, 6),
        (4, 1, 140 * GB, 21 * GB, 4),
        (4, 1, 40 * GB, 45 * GB, 1),  # one is tried: estimates are no promises
        (4, 0, 20 * GB, 7 * GB, 2),
        (2, 2, 10 * GB, 45 * GB, 2),  # one for each GPU
        (4, 0, None, 7 * GB, 4),  # the system does not say
        (4, 1, 140 * GB, 0, 4),  # the model cannot be read yet
    ],
)
def test_no_more_cells_than_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: int,
    gpus: int,
    there: int | None,
    takes: int,
    expected: int,
) -> None:
    monkeypatch.setattr(sweep, "_memory", lambda count: there)
    monkeypatch.setattr(sweep, "_needs", lambda cell: {"01-a": (takes // 2, 0), "02-b": (takes, 0)})
    made: Any = SimpleNamespace(cells=[object(), object()])
    assert sweep._places(made, asked, gpus) == expected
    told = capsys.readouterr().err
    assert (f"--jobs {asked}: only {expected}" in told) == (expected < asked)


def test_a_warning_that_differs_in_its_figures_alone_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    findings = {
        "a": [Finding("warning", "about 7 GB.", "Less.", about="memory"), Finding("warning", "Same for all.")],
        "b": [Finding("warning", "about 8 GB.", "Less.", about="memory"), Finding("warning", "Same for all.")],
        "c": [Finding("warning", "Of c alone."), Finding("note", "Not shown.")],
    }
    monkeypatch.setattr(preflight, "preflight", lambda plan, **given: findings[plan])
    made: Any = SimpleNamespace(cells=[SimpleNamespace(name=name, plan=name) for name in findings])
    sweep._check(made, Folders(tmp_path), offline=True)
    told = capsys.readouterr().err
    assert told.count("GB") == 1
    assert "about 7 GB. (a and 1 more cells) Less." in told
    assert told.count("Same for all.") == told.count("Of c alone.") == 1
    assert "Not shown" not in told
