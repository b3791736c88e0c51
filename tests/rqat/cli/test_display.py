"""What is drawn."""

from __future__ import annotations

import io
import re

import pytest

from rqat import figures
from rqat.cli import display


@pytest.mark.parametrize(
    ("value", "shown"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_seconds(value: float, shown: str) -> None:
    assert figures.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.4, "0:00"), (7, "0:07"), (103, "1:43"), (3599, "59:59"), (7800, "2h10")]
)
def test_clock(value: float, shown: str) -> None:
    assert figures.clock(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.2, "1 s"), (89, "89 s"), (150, "2 min"), (7800, "2 h 10 min")])
def test_roughly(value: float, shown: str) -> None:
    assert figures.roughly(value) == shown


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


class _Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    found = _Clock()
    monkeypatch.setattr(display, "time", found)
    return found


class _Screen(io.StringIO):
    """A terminal of some width, which keeps what is drawn."""

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, columns: int) -> _Screen:
    """Stderr as a terminal."""
    screen = _Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    return screen


def lines_of(screen: _Screen) -> list[str]:
    """Every line that was ever drawn, without what steers the terminal."""
    return [
        line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())) if line.strip()
    ]


def test_a_resumed_bar_begins_where_the_work_does_and_knows_its_pace(
    clock: _Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with display.Bars().task("train kd", 250) as bar:
        bar.update(200)  # of an earlier process
        assert bar._times() == "0:00"
        for done in range(201, 211):
            clock.now += 2
            bar.update(done, "loss 0.5")
        assert bar._times() == "0:20<1:20"  # 40 steps of 2 s, whatever the first 200 took
        clock.now += 20
        bar.update(211)
        assert bar._times() == "0:40<2:22"


def test_without_a_terminal_there_is_a_line_now_and_then(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with display.Bars().task("train kd", 100) as bar:
        for done in range(1, 101):
            clock.now += 3
            bar.update(done, f"loss {1 / done:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train kd ..."
    assert lines[1] == "train kd: 5 of 100  0:15<4:45  loss 0.20"
    assert lines[-2] == "train kd: 95 of 100  4:45<0:15  loss 0.01"
    assert lines[-1] == "train kd: 5 min 00 s  loss 0.01"
    assert len(lines) == 21


def test_a_line_counts_whole_pieces(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A block reports its layers as parts of it."""
    with display.Bars().task("quantize gptq", 3) as bar:
        for done in (0.125, 0.6875, 1.875):
            clock.now += 20
            bar.update(done)
    lines = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines[1:-1] == ["quantize gptq: 0 of 3", "quantize gptq: 1 of 3"]


def test_quick_work_says_no_more_than_its_beginning_and_end(clock: _Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with display.Bars().task("quantize rtn", 8) as bar:
        for done in range(9):
            bar.update(done)
    assert capsys.readouterr().err.splitlines() == ["quantize rtn ...", "quantize rtn: 0.0 s"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_lines_of_a_bar_stand_still(clock: _Clock, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = drawn(monkeypatch, columns)
    bars = display.Bars()
    with (
        bars.step("04-train-kd", 4, 12, "about 3 min left"),
        bars.task("evaluate a-long-name on its-task", 2000) as bar,
    ):
        for done in (1, 9, 10, 999, 1000, 2000):
            clock.now += 700
            bar.update(done, "reward 0.123 and much more than fits")
            bars._progress.refresh()
    lines = lines_of(screen)
    assert any("Step 4 of 12: 04-train-kd, about 3 min left, loading ..." in line for line in lines)
    bars_drawn = [line for line in lines if "4/12 evaluate" in line]
    assert bars_drawn
    assert max(map(len, lines)) <= columns - 4  # room for the ^C that a terminal writes there
    positions = {line.rindex("2000") for line in bars_drawn if "2000" in line}
    assert len(positions) == 1


def test_waiting_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with display.waiting("Loading libraries"):
        assert capsys.readouterr().err == "Loading libraries ...\n"
    screen = drawn(monkeypatch, 80)
    with display.waiting("Loading libraries"):
        assert "Loading libraries ..." in screen.getvalue()
