"""How many cells of a sweep run side by side: no more than memory holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rqat.cli import sweep

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
