"""Users' texts: read as they are meant, or refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rqat import text_files
from rqat.errors import DataError
from rqat.text_files import parse_json, read_text, refuse_half_pairs


def test_texts_are_read_packed_or_not(tmp_path: Path) -> None:
    for name, data in (("a.txt", b"\xef\xbb\xbfa\r\nb\rc\n"), ("a.txt.gz", gzip.compress(b"a\r\nb\rc\n"))):
        (tmp_path / name).write_bytes(data)
        assert read_text(tmp_path / name) == "a\nb\rc\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"a\nb\xff\n", r"a\.jsonl:2: not UTF-8"),
        ("a.jsonl", "a".encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl.gz", b"a", "is not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"a" * 99, mtime=0)[:-3], "is not a whole gzip file"),
        ("a.jsonl.gz", text_files.POINTER + b"v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
        ("a.jsonl", text_files.POINTER + b"v1\noid sha256:0\nsize 1\n", "is a pointer of Git LFS"),
    ],
)
def test_what_is_no_text_is_told(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=says) as found:
        read_text(tmp_path / name)
    assert found.value.hint
    with pytest.raises(DataError, match="there is no such file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="Is a directory"):
        read_text(tmp_path)


def test_a_packed_file_that_is_called_otherwise_is_told_as_one(tmp_path: Path) -> None:
    for name, hint in (("a.jsonl", "It is packed: name it a.jsonl.gz."), ("b.jsonl.gz", "Convert the file to UTF-8.")):
        (tmp_path / name).write_bytes(gzip.compress(b"\x1f\x8b" if name == "b.jsonl.gz" else b"{}"))
        with pytest.raises(DataError, match=":1: not UTF-8") as found:
            read_text(tmp_path / name)
        assert found.value.hint == hint


def test_an_archive_that_unpacks_without_bound_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "UNPACKED", 1 << 20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\0" * (4 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read_text(tmp_path / "bomb.jsonl.gz")
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"a" * (1 << 20)))
    assert len(read_text(tmp_path / "text.gz")) == 1 << 20


def test_json_that_says_two_things_is_refused() -> None:
    assert parse_json('{"a": [1, {"b": "c"}], "d": null}') == {"a": [1, {"b": "c"}], "d": None}
    for text in ('{"a": 1, "a": 2}', '[{"b": {"a": 1, "c": 2, "a": 1}}]'):
        with pytest.raises(ValueError, match="the key 'a' is written twice"):
            parse_json(text)


def test_half_of_a_pair_is_told_with_where_it_stands() -> None:
    refuse_half_pairs("\N{GRINNING FACE}", lambda: "row 1")
    with pytest.raises(
        DataError, match=r"^row 2: character 3 of the field 'q' is half of a pair \(\\ud83d\), which is no"
    ):
        refuse_half_pairs("ab\ud83d", lambda: "row 2", " of the field 'q'")
