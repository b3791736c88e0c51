"""Checkpoints of interrupted training: only whole ones count, at every moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from rqat.train import checkpoints
from rqat.train.checkpoints import COMPLETE, discard, last_complete, step_of


def save(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    if complete:
        (checkpoint / COMPLETE).write_text(f"{step}\n")
    return checkpoint


def test_the_newest_whole_checkpoint_counts_and_half_written_ones_go(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "missing") is None
    save(tmp_path, 9)
    whole, half = save(tmp_path, 10), save(tmp_path, 11, complete=False)
    assert last_complete(tmp_path) == whole
    assert step_of(whole) == 10
    assert not half.exists()


def test_killed_while_discarding_leaves_nothing_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)

    def killed(folder: Path, **_: object) -> None:
        (folder / "checkpoint-3" / "optimizer.pt").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        discard(tmp_path)
    assert last_complete(tmp_path) is None
    discard(tmp_path)
    assert not tmp_path.exists()
