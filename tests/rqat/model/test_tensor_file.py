"""Files written tensor by tensor have the bytes that safetensors gives them, and what is read of them is no map."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rqat.model import hf_folder, tensor_file
from rqat.model.hf_folder import ShardWriter
from rqat.model.tensor_file import DTYPES, TensorFile, same_bytes, write_file

META = {"rqat": json.dumps({"ä": [1, 2]}, ensure_ascii=False)}


def tensors() -> dict[str, torch.Tensor]:
    """One of every dtype, of odd sizes, and names that JSON has to escape; order says nothing of that in the file."""
    found = {f"x.{name}": torch.arange(7).to(dtype) for name, dtype in DTYPES.items()}
    odd = {'é"\\/\n\x07\x7f': torch.zeros((), dtype=torch.bfloat16), "none": torch.zeros(0, 3), "a": torch.ones(3, 5)}
    return {**odd, **found}


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    theirs, ours, again = (tmp_path / name for name in ("theirs", "ours", "again"))
    save_file(tensors(), theirs, META)
    write_file(ours, tensors(), META)
    assert ours.read_bytes() == theirs.read_bytes()
    file = TensorFile(ours)
    assert file.metadata == META
    write_file(again, dict(reversed(file.tensors.items())), file.metadata)
    assert again.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("answer", ["all", "some", "none", errno.EXDEV])
def test_large_tensors_are_copied_by_the_system_where_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | int
) -> None:
    given = {"a": torch.arange(70_000, dtype=torch.int32), "b": torch.arange(3), "c": torch.rand(300, 400)}
    save_file(given, tmp_path / "theirs", META)
    asked: list[int] = []

    def copied(source: int, target: int, count: int, start: int) -> int:
        asked.append(count)
        if isinstance(answer, int):
            raise OSError(answer, "no")
        share = {"all": count, "some": 1 + count // 3 if len(asked) < 4 else 0, "none": 0}[answer]
        return os.pwrite(target, os.pread(source, share, start), os.lseek(target, share, os.SEEK_CUR) - share)

    monkeypatch.setattr(os, "copy_file_range", copied, raising=False)
    file = TensorFile(tmp_path / "theirs")
    write_file(tmp_path / "again", file.tensors, META)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert asked[:1] == [given["c"].nbytes], "in the order of the file; small ones are not asked for"


def test_a_full_disk_is_told_where_the_system_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.arange(70_000)}, tmp_path / "theirs")

    def full(*asked: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "again", TensorFile(tmp_path / "theirs").tensors, {})
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_is_read_is_what_was_written_and_in_memory_of_its_own(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "file")
    file = TensorFile(tmp_path / "file")
    for name, tensor in tensors().items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name
        assert read.untyped_storage().nbytes() == tensor.nbytes


def test_pieces_are_the_whole_in_order_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "PIECE", 64)
    save_file(tensors() | {"long": torch.arange(100.0)}, tmp_path / "file")
    file = TensorFile(tmp_path / "file")
    for name, lying in file.tensors.items():
        pieces = [piece.clone() for piece in lying.pieces()]
        assert all(piece.nbytes <= 64 for piece in pieces)
        assert same_bytes(torch.cat([*pieces, torch.empty(0, dtype=lying.dtype)]), file.read(name).reshape(-1)), name


def test_rows_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(50, 7).bfloat16()
    save_file({"a": torch.zeros(3), "matrix": matrix}, tmp_path / "file")
    lying = TensorFile(tmp_path / "file").tensors["matrix"]
    monkeypatch.setattr(type(lying), "read", lambda self: pytest.fail("all of it was read"))
    numbers = torch.tensor([[49, 0], [3, 3]])
    assert lying.rows(numbers).equal(matrix[numbers])


@pytest.mark.parametrize("place", [0, 63, 64, 396, 399])
def test_two_tensors_are_the_same_to_the_byte_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(tensor_file, "PIECE", 64)
    bytes_of = torch.arange(400).to(torch.uint8)
    changed = bytes_of.clone()
    changed[place] += 1
    given = {"one": bytes_of, "same": bytes_of.clone(), "changed": changed, "short": bytes_of[:399]}
    write_file(tmp_path / "file", given | {"typed": bytes_of.view(torch.int16)}, {})
    found = TensorFile(tmp_path / "file").tensors
    assert found["one"].same_as(found["same"])
    assert not any(found["one"].same_as(found[other]) for other in ("changed", "short", "typed"))
    assert same_bytes(bytes_of, bytes_of.clone())
    assert not same_bytes(bytes_of, changed)
    assert not same_bytes(torch.tensor(0.0), torch.tensor(-0.0))


def test_views_and_turned_tensors_are_written_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    views = {"end": whole[7:], "column": whole.view(6, 2)[:, :1], "turned": whole.view(3, 4).T}
    write_file(tmp_path / "file", views, {})
    assert {name: t.tolist() for name, t in load_file(tmp_path / "file").items()} == {
        name: t.tolist() for name, t in views.items()
    }


def test_a_file_that_is_cut_off_is_refused_when_it_is_opened_or_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": torch.arange(100), "b": torch.arange(100.0)}, path)
    file, whole = TensorFile(path), path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(SafetensorError):
        TensorFile(path)
    with pytest.raises(SafetensorError, match="was written again after its header had been read"):
        file.read("a")


def test_tensors_are_not_looked_for_in_a_file_that_took_the_place_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": torch.arange(100)}, path, {"seconds": "9.9"})
    file = TensorFile(path)
    save_file({"a": torch.arange(100)}, path, {"seconds": "10.0 and a little more"})
    with pytest.raises(SafetensorError, match="was written again after its header had been read"):
        file.read("a")
    assert TensorFile(path).read("a").equal(torch.arange(100))


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path, gone = tmp_path / "file", tmp_path / "gone"
    save_file({"a": torch.zeros(3)}, gone)
    lying = TensorFile(gone).tensors
    write_file(path, {"a": torch.ones(3)}, {})
    gone.unlink()
    with pytest.raises(FileNotFoundError):
        write_file(path, lying, {})
    assert load_file(path)["a"].tolist() == [1, 1, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("shard", [1 << 30, 200])
def test_a_shard_is_the_same_whether_its_tensors_wait_in_memory_or_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    monkeypatch.setattr(hf_folder, "SHARD", shard)
    written = []
    for held in (1 << 30, 40):
        monkeypatch.setattr(hf_folder, "HELD", held)
        folder = tmp_path / str(held)
        folder.mkdir()
        shards = ShardWriter(folder)
        for name, tensor in tensors().items():
            shards.add(name, tensor)
        shards.close()
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    assert (len(written[0]) > 2) == (shard == 200)


def test_a_tensor_that_lies_in_another_file_is_copied_into_a_shard_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "HELD", 40)
    given, source = tensors(), tmp_path / "source"
    save_file(given, source)
    before = source.read_bytes()
    for name, there in (("read", given), ("lying", TensorFile(source).tensors)):
        folder = tmp_path / name
        folder.mkdir()
        shards = ShardWriter(folder)
        for number, (key, tensor) in enumerate(given.items()):
            shards.add(key, there[key] if number % 2 else tensor)
        shards.close()
    assert (tmp_path / "lying" / "model.safetensors").read_bytes() == (
        tmp_path / "read" / "model.safetensors"
    ).read_bytes()
    assert source.read_bytes() == before
    assert [path.name for path in (tmp_path / "lying").iterdir()] == ["model.safetensors"]
