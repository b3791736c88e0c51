"""A general task by lm-eval, `ifeval`: its figures are lm-eval's own. Skipped without its packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rqat.contracts import TaskOptions
from rqat.errors import DataError
from rqat.evals.lm_eval_tasks import find_task, prepare_task, run_lm_eval_task
from tests.tiny import tiny_model, tiny_tokenizer

for _package in ("langdetect", "immutabledict", "nltk"):
    pytest.importorskip(_package, reason="ifeval's packages are not here: pip install 'rqat[ifeval]'")

TOKENS = 24

ASKED: list[tuple[str, dict[str, Any]]] = [
    ("punctuation:no_comma", {}),
    ("keywords:forbidden_words", {"forbidden_words": ["rain", "wind"]}),
    ("keywords:existence", {"keywords": ["sun"]}),
    ("keywords:frequency", {"keyword": "sun", "frequency": 1, "relation": "less than"}),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"}),
    ("length_constraints:number_words", {"num_words": 9, "relation": "less than"}),
    ("length_constraints:number_words", {"num_words": 9, "relation": "at least"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}),
    ("change_case:english_lowercase", {}),
    ("language:response_language", {"language": "en"}),
    ("detectable_format:json_format", {}),
    ("startend:quotation", {}),
    ("detectable_format:title", {}),
]
"""Instructions, each of another kind; none that wants texts of nltk's."""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty rows of our own in the form of google/IFEval, with one to three instructions, and a folder for nltk."""
    import langdetect
    import nltk

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)  # it draws at random
    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    keys = sorted({key for _, settings in ASKED for key in settings})
    lines = []
    for number in range(20):
        chosen = [ASKED[(number + 5 * more) % len(ASKED)] for more in range(1 + number % 3)]
        row = {
            "key": number,
            "prompt": f"Write of day {number}: {'; '.join(name for name, _ in chosen)}.",
            "instruction_id_list": [name for name, _ in chosen],
            "kwargs": [{key: settings.get(key) for key in keys} for _, settings in chosen],
        }
        lines.append(json.dumps(row) + "\n")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(lines))
    return file


def test_its_figures_are_those_of_lm_eval(rows: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = tiny_model(7, hidden=64, context=512)
    options = TaskOptions(data=str(rows), max_new_tokens=TOKENS)
    prepare_task("ifeval", options)
    found = run_lm_eval_task("ifeval", model, tiny_tokenizer(), options, batch=4)

    (tmp_path / "own.yaml").write_text(
        f"include: {find_task('ifeval')}\ntask: ifeval_of_files\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{train: {rows}}}}}\n"
    )
    alone = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=4),
        tasks=["ifeval_of_files"],
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": TOKENS},
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    assert alone is not None
    theirs = {key: value for key, value in alone["results"]["ifeval_of_files"].items() if "_acc," in key}
    assert set(theirs) == {
        f"{level}_level_{how}_acc,none" for level in ("prompt", "inst") for how in ("strict", "loose")
    }
    assert {key: float(value) for key, value in found.results["metrics"].items()} == theirs
    assert found.results["accuracy"] == theirs["prompt_level_strict_acc,none"]
    assert 0 < found.results["accuracy"] < theirs["inst_level_strict_acc,none"] < 1  # else equal figures say little
    samples = alone["samples"]["ifeval_of_files"]
    assert [row["completion"] for row in found.samples] == [row["resps"][0][0] for row in samples]
    assert [row["score"] for row in found.samples] == [float(row["prompt_level_strict_acc"]) for row in samples]
    assert found.results["n"] == 20


def test_texts_of_nltk_that_are_missing_are_told_before_any_work(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "empty")])
    with pytest.raises(DataError, match="'ifeval' needs nltk's data 'punkt_tab'") as caught:
        prepare_task("ifeval", TaskOptions(data=str(rows)))
    assert "python -m nltk.downloader punkt_tab" in caught.value.hint
