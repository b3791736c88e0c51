"""The teacher is frozen and speaks the student's vocabulary; a recipe may name another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.errors import ModelError
from rqat.keys import ModelKeys
from rqat.model.vocabulary import read_vocabulary
from rqat.train.teacher import load_teacher
from tests.tiny import save_tiny, tiny_tokenizer


def test_is_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    teacher = load_teacher(ModelKeys(path=str(save_tiny(tmp_path / "m"))), tiny_tokenizer(), offline=True)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_another_vocabulary_is_refused_with_a_token_that_differs(tmp_path: Path) -> None:
    student = tiny_tokenizer()
    student.add_tokens(["<think>"])
    with pytest.raises(ModelError, match="of 96 and 97 tokens: token '<think>' is missing for the teacher and 96 for"):
        load_teacher(ModelKeys(path=str(save_tiny(tmp_path / "m"))), student, offline=True)


def test_the_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(tmp_path)
    assert read_vocabulary(tmp_path) == tokenizer.get_vocab()
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram | {"added_tokens": [{"id": 2, "content": "<s>"}]}))
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"3": {"content": "<pad>"}}}')
    assert read_vocabulary(tmp_path) == {"<unk>": 0, "a": 1, "<s>": 2, "<pad>": 3}
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    assert read_vocabulary(tmp_path) is None


RECIPE = """name: mine
model: {folder}/student
scheme: w2g32
quantize: rtn
train:
  - {{objective: kd, data: arith, steps: 2, batch: 2, max_tokens: 96, lr: 1.0e-3, teacher: {folder}/teacher}}
export: null
"""


def test_distils_from_a_larger_teacher_with_a_wider_head(tmp_path: Path) -> None:
    save_tiny(tmp_path / "student")
    save_tiny(tmp_path / "teacher", 1, hidden=64, layers=3, vocab=160, tied=False)
    recipe, run = tmp_path / "mine.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(folder=tmp_path))
    manifests = []
    for name, more in (("another", []), ("itself", ["--set", "train.kd.teacher=null"])):
        told = CliRunner().invoke(build(), ["qat", "--recipe", str(recipe), "-o", str(run / name), *more])
        assert told.exit_code == 0, told.output
        manifests.append(json.loads((run / name / "02-train-kd" / "manifest.json").read_text()))
    another, itself = manifests
    assert set(another["facts"]["settings"].pop("teacher")["weights"]) == {"model.safetensors"}
    assert itself["facts"]["settings"].pop("teacher") is None
    assert another["facts"] == itself["facts"]
    assert another["results"]["latents_from"] == itself["results"]["latents_from"] == "the weights before quantization"
    assert another["results"]["final_loss"] > 2 * itself["results"]["final_loss"]
