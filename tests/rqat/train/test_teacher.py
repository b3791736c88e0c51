"""The teacher is frozen and speaks the student's vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from rqat.errors import ModelError
from rqat.keys import ModelKeys
from rqat.train.teacher import load_teacher
from tests.tiny import save_tiny, tiny_tokenizer


def test_is_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    teacher = load_teacher(ModelKeys(path=str(save_tiny(tmp_path / "m"))), tiny_tokenizer(), offline=True)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_another_vocabulary_is_refused_with_a_token_that_differs(tmp_path: Path) -> None:
    student = tiny_tokenizer()
    student.add_tokens(["<think>"])
    with pytest.raises(ModelError, match="token '<think>' is None for the teacher and"):
        load_teacher(ModelKeys(path=str(save_tiny(tmp_path / "m"))), student, offline=True)
