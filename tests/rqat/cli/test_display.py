"""What is drawn."""

from __future__ import annotations

import pytest

from rqat import figures
from rqat.cli import display


@pytest.mark.parametrize(
    ("value", "shown"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_seconds(value: float, shown: str) -> None:
    assert figures.seconds(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(12, "12 B"), (812_000_000, "812 MB"), (1_400_000_000, "1.4 GB")])
def test_size(value: float, shown: str) -> None:
    assert figures.size(value) == shown


def test_table_is_not_cut_and_reads_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    display.table(("name", "n"), [("[bold]x[/bold]", 3), ("y" * 90, 12)])
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert "y" * 90 in out
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_bars_write_plain_lines_when_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bars = display.Bars()
    with bars.task("quantize gptq", 4) as outer:
        with bars.task("block 0", 2) as inner:
            inner.update(2, "error 0.1")
        outer.update(4, "loss 0.5")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert next(line for line in lines if line.startswith("quantize gptq: ")).endswith("loss 0.5")
    assert "\x1b" not in captured.err


def test_bars_survive_an_error() -> None:
    bars = display.Bars()
    with pytest.raises(ValueError, match="oh"), bars.task("work", 2):
        raise ValueError("oh")
    with bars.task("again", 1) as bar:
        bar.update(1)
