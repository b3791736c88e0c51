"""Calibration data: whole sequences of the asked length, always the same, and too little of it is told."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rqat import DataError, ModelError, Row, Source
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.stage import Step
from rqat.stages.calibrate import CalibrationKeys
from rqat.stages.calibrate import run as calibrate
from rqat.stages.calibrate.run import cut_rows
from tests.tiny import save_tiny, tiny_tokenizer

EOS = 1


class Listed(Source):
    """Gives the rows it was made with, and counts how many were taken."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__(None)
        self.listed = rows
        self.taken = 0

    def rows(self, split: str, seed: int) -> Iterator[Row]:
        for row in self.listed:
            self.taken += 1
            yield row


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def run(folder: Path, model: Path, rows: list[Row], **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    source = Listed(rows)
    registry = SimpleNamespace(make=lambda card, options: source)
    plan = SimpleNamespace(model=ModelKeys(path=str(model)))
    use = SimpleNamespace(card=None, options=None)
    step = Step("01-calibrate", "calibrate", "bf16", CalibrationKeys(source="listed", **settings), {"source": use})  # type: ignore[dict-item]
    job = Job(plan, folder, registry, offline=True)  # type: ignore[arg-type]
    job.workdir(step).mkdir(exist_ok=True)
    facts = calibrate.run(job, step)
    assert facts["rows"] == source.taken
    return facts, load_file(job.workdir(step) / "calibration.safetensors")


def ids(text: str) -> list[int]:
    return list(tiny_tokenizer()(text)["input_ids"])


def test_packs_rows_with_an_end_between(tmp_path: Path, model: Path) -> None:
    rows: list[Row] = [{"text": "12+3=15"}, {"prompt": "7*8=", "completion": "56"}, {"text": "abc"}, {"text": "unread"}]
    facts, tensors = run(tmp_path, model, rows, samples=3, tokens=6)
    stream = [*ids("12+3=15"), EOS, *ids("7*8=56"), EOS, *ids("abc"), EOS]
    assert tensors["input_ids"].flatten().tolist() == stream[:18]
    assert tensors["input_ids"].dtype == torch.int32
    assert bool(tensors["attention_mask"].all())
    assert (facts["rows"], facts["sequences"], facts["tokens"]) == (3, 3, 18)


def test_one_row_per_sequence_is_cut_and_padded(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Row] = [{"text": "12345678"}, {"text": "ab"}]
    facts, tensors = run(tmp_path, model, rows, samples=2, tokens=5, pack=False)
    assert tensors["input_ids"].tolist() == [ids("12345"), [*ids("ab"), EOS, 0, 0]]
    assert tensors["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert facts["tokens"] == 8
    assert facts["rows_cut"] == 1
    assert cut_rows(SimpleNamespace(cut=1, rows=2), SimpleNamespace(tokens=5)) in caplog.text  # type: ignore[arg-type]


def test_same_rows_same_bytes(tmp_path: Path, model: Path) -> None:
    rows: list[Row] = [{"text": "12345678" * 4}]
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        facts, _ = run(tmp_path / name, model, rows, samples=2, tokens=8)
        written.append((facts, (tmp_path / name / "01-calibrate.partial" / "calibration.safetensors").read_bytes()))
    assert written[0] == written[1]


def test_the_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = tiny_tokenizer()
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[?]{% endif %}"
    chat: Row = {"prompt": "1+1", "completion": "2"}
    assert calibrate.tokenize(chat, tokenizer) == [*ids("[user]1+1"), EOS, *ids("[?]2"), EOS]
    assert calibrate.tokenize({"prompt": "1+1"}, tokenizer) == [*ids("[user]1+1"), EOS, *ids("[?]"), EOS]
    assert calibrate.tokenize({"text": "1+1"}, tokenizer) == [*ids("1+1"), EOS]
    assert calibrate.tokenize(chat, tiny_tokenizer()) == [*ids("1+12"), EOS]


def test_a_template_that_drops_reasoning_does_not_drop_it_here() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content.split('</think>')[-1] }}]{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    row: Row = {"prompt": "1+1", "completion": "<think>one and one</think>2"}
    assert calibrate.tokenize(row, tokenizer) == [*ids("[1+1]><think>one and one</think>2"), EOS]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "'listed' has no rows in its train split"),
        (
            [{"text": "123456789"}] * 3,
            {"samples": 4, "tokens": 8},
            "4 sequences of 8 tokens were asked for; 'listed' has 3",
        ),
        ([{"text": "1"}] * 3, {"samples": 4, "pack": False}, "4 rows were asked for; 'listed' has 3 in its 3 rows"),
    ],
)
def test_too_little_data_is_told(
    tmp_path: Path, model: Path, rows: list[Row], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        run(tmp_path, model, rows, **settings)
    assert message in caught.value.message
    assert caught.value.hint


def test_sequences_longer_than_the_context_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match="513 is more than the 512 tokens of the model's context"):
        run(tmp_path, model, [{"text": "1"}], tokens=513)
