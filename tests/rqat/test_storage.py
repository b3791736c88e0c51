"""JSON lines: what is written is read, up to where a kill has cut it off."""

from __future__ import annotations

from pathlib import Path

from rqat.storage import append_json_line, read_json_lines, write_json_lines


def test_lines_that_are_written_are_read(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_json_lines(file) == []
    rows = [{"text": "größer\u2028\n"}, {"loss": 0.1}]
    write_json_lines(file, rows)
    append_json_line(file, {"loss": 0.2})
    assert read_json_lines(file) == [*rows, {"loss": 0.2}]
    assert "größer" in file.read_text(encoding="utf-8")


def test_half_a_surrogate_pair_is_written_as_it_was_escaped(tmp_path: Path) -> None:
    """JSON can say what UTF-8 cannot, and a prompt may hold it."""
    file = tmp_path / "lines.jsonl"
    write_json_lines(file, [{"text": "\ud83d größer"}])
    append_json_line(file, {"text": "\udc00"})
    assert read_json_lines(file) == [{"text": "\ud83d größer"}, {"text": "\udc00"}]


def test_what_follows_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    write_json_lines(file, [{"text": "größer"}] * 2)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex("ß".encode()) + 1])
    assert read_json_lines(file) == [{"text": "größer"}]
    file.write_bytes(b"{\n" + whole)
    assert read_json_lines(file) == []
