"""What a run adds to a model card when it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rqat.stages.export.card import _left
from rqat.stages.export.told import licence_of, shareable, told

CARD = """---
base_model: some/one
library_name: transformers
tags:
- rqat
quantized_by: rqat
---

# one, w2g64

About it.

## Load it

code

## Serve it

more
"""

FIGURES = {"n": 300, "accuracy": 0.8733, "low": 0.831, "high": 0.906, "seeds": [1, 2, 3], "mean_tokens": 185.2}
FIGURES |= {"generation": {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32768}, "backend": "engine"}
PAIR = {"task": "math500", "variant": "kd", "against": "bf16", "difference": -0.09, "low": -0.127, "high": -0.057}
SUMMARY = {
    "tasks": {"math500": {"bf16": {"n": 300, "accuracy": 0.963, "low": 0.936, "high": 0.979}, "kd": FIGURES}},
    "paired": [PAIR | {"says": "worse"}],
}
PLAN: dict[str, Any] = {
    "rqat": "0.1.0",
    "packages": {"torch": "2.11", "transformers": "5.17", "python": "3.11"},
    "machine": {"gpu": "NVIDIA H200"},
    "recipe": {"name": "x", "model": {"path": "some/one"}, "evaluate": [{"task": "math500", "max_new_tokens": 32768}]},
}


def card(**more: Any) -> str:
    return told(CARD, **{"variant": "kd", "summary": SUMMARY, "plan": PLAN, "licence": {}, **more})


def test_the_hub_reads_scores_base_and_licence() -> None:
    read = ModelCard(card(licence={"license": "apache-2.0"}))
    assert read.data["base_model"] == "some/one"
    assert read.data["license"] == "apache-2.0"
    assert read.data["quantized_by"] == "rqat"
    (score,) = read.data.eval_results
    assert (score.dataset_name, score.metric_type, score.metric_value) == ("math500", "accuracy", 87.33)
    assert score.metric_name == "accuracy in %, 95 % interval 83.1 to 90.6, 300 problems"
    assert read.data.model_name == "one, w2g64"


def test_people_read_intervals_and_how_they_came_about() -> None:
    text = card()
    assert "| math500 | 300 | 96.3 (93.6 to 97.9) | 87.3 (83.1 to 90.6) | -9.0 (-12.7 to -5.7): worse |" in text
    assert "`math500`: temperature 0.6, top-p 0.95, at most 32,768 new tokens, 3 seeds, 185 tokens on average" in text
    assert "rqat 0.1.0, torch 2.11, transformers 5.17, on NVIDIA H200." in text
    assert "rqat qat --recipe recipe.yaml" in text
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe == PLAN["recipe"]


def test_sections_stand_in_order_and_once() -> None:
    once = card()
    assert told(once, variant="kd", summary=SUMMARY, plan=PLAN, licence={}) == once
    headings = [line for line in once.splitlines() if line.startswith("#")]
    assert headings == ["# one, w2g64", "## Results", "## Load it", "## Serve it", "## How it was made"]


def test_without_scores_there_are_none() -> None:
    text = card(summary={"tasks": {}, "paired": []})
    assert "model-index" not in text
    assert "## Results" not in text
    assert "## How it was made" in text
    assert "Results" not in card(variant="another")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/secret/model", "model"),
        ("~/secret/rows.jsonl", "rows.jsonl"),
        ("../secret/rows.jsonl", "rows.jsonl"),
        ("C:\\secret\\rows.jsonl", "rows.jsonl"),
        ("http://user:secret@host/v1", "(left out)"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("*.down_proj", "*.down_proj"),
        ("<script>secret", "_script_secret"),
    ],
)
def test_no_local_path_is_named(value: str, shown: str) -> None:
    assert shareable({"a": [value]}) == {"a": [shown]}
    assert shown == "_script_secret" or "secret" not in card(plan=PLAN | {"recipe": {"data": value}})


def test_a_folder_that_is_there_is_local_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "one").mkdir(parents=True)
    assert shareable("some/one") == "one"


def test_the_licence_is_that_of_the_model_before(tmp_path: Path) -> None:
    assert licence_of(None) == {}
    assert licence_of(tmp_path) == {}
    front = "license: other\nlicense_name: qwen-research\nlicense_link: LICENSE\nlanguage: [en]"
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n\n# x\n")
    found = licence_of(tmp_path)
    assert found == {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}
    assert "Licence: other qwen-research, that of the model before quantization." in card(licence=found)
    (tmp_path / "README.md").write_bytes(b"---\n: [\xff\n---\n")
    assert licence_of(tmp_path) == {}


def test_layers_of_many_blocks_that_were_left_are_a_pattern_with_a_count() -> None:
    names = [f"model.layers.{block}.mlp.down_proj" for block in range(30)] + ["model.layers.0.mlp.up_proj", "lm_head"]
    reader: Any = SimpleNamespace(layers={}, unpacked={}, skipped=names)
    left = ["the embeddings", "the norms", "30 of `*.down_proj`", "`model.layers.0.mlp.up_proj`", "`lm_head`"]
    assert _left(reader) == left
