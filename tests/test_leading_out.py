"""Names and links in somebody's files that lead out of a folder: refused in one line, and never followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rqat.errors import ModelError
from rqat.keys import ModelKeys
from rqat.model.hub import missing_files
from rqat.model.load import load_tokenizer
from rqat.storage import sha256_of, stamp_of
from rqat.train.checkpoints import Snapshot, read_checkpoint, write_checkpoint
from tests.test_strangers import RECIPE, quantize, run
from tests.tiny import save_tiny

OUTSIDE = ("../secret.txt", "a/../../../secret.txt", "/etc/passwd", "a\0b")
"""Names of files that are in no folder of a run."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "model")


@pytest.fixture
def finished(model: Path, tmp_path: Path) -> Path:
    """The step of a finished run, in `run`; beside it a file that is nobody's business."""
    Path("mine.yaml").write_text(RECIPE.format(model=model))
    run("qat", "--recipe", "mine.yaml", "-o", "run", code=0)
    (tmp_path / "run" / "secret.txt").write_text("secret")
    (tmp_path / "run" / "secret.txt").rename(tmp_path / "secret.txt")
    [step] = (tmp_path / "run").glob("*-quantize-rtn")
    return step


def rewrite(path: Path, **changes: Any) -> None:
    """Changes a mapping in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_files_outside_its_folder(finished: Path, tmp_path: Path, name: str) -> None:
    """Not even one that is there, with the right hash."""
    before = json.loads((finished / "manifest.json").read_text())
    secret = tmp_path / "secret.txt"
    rewrite(
        finished / "manifest.json",
        files=before["files"] | {name: sha256_of(secret)},
        stamps=before["stamps"] | {name: stamp_of(secret)},
    )
    (finished / "a").mkdir()
    told = run("runs", "verify", "run", code=2)
    assert "finished steps are not what was written" in told.stderr
    told = run("qat", "--recipe", "mine.yaml", "-o", "run", code=0).stderr
    assert "set aside as .damaged-" in told
    assert json.loads((finished / "manifest.json").read_text())["files"] == before["files"]


@pytest.mark.parametrize(
    "wrong", [{"files": None}, {"files": ["a"]}, {"results": 7}, {"stage": None}, {"stamps": {"a": 1}}]
)
def test_a_manifest_that_is_none_does_not_stand_for_a_step(finished: Path, wrong: dict[str, Any]) -> None:
    rewrite(finished / "manifest.json", **wrong)
    assert "manifest.json changed since it was written" in run("runs", "verify", "run", code=2).output
    assert "set aside" in run("qat", "--recipe", "mine.yaml", "-o", "run", code=0).stderr
    run("runs", "verify", "run", code=0)


@pytest.mark.parametrize(
    "link",
    [
        *(".lock", ".old", "01-quantize-rtn/config.json", "01-quantize-rtn/manifest.json", "01-quantize-rtn/.resume"),
        *("01-quantize-rtn.partial", "02-train-kd.partial/training.jsonl", "summary.json", "nowhere"),
    ],
)
def test_a_run_folder_cannot_lead_out_of_itself(finished: Path, tmp_path: Path, link: str) -> None:
    """What is written, truncated or removed there would be somebody else's."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("precious")
    whole = link in (".old", "01-quantize-rtn.partial", "01-quantize-rtn/.resume")
    path = tmp_path / "run" / link
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to({"nowhere": tmp_path / "gone"}.get(link, other if whole else other / "precious.txt"))
    for command in (["qat", "--recipe", "mine.yaml", "-o", "run"], ["runs", "verify", "run"]):
        told = run(*command, code=2).stderr
        assert f"{link}' is a link to '" in told
        assert "which is not in the run's folder" in told
    assert [(entry.name, entry.read_text()) for entry in other.iterdir()] == [("precious.txt", "precious")]
    path.unlink()
    run("qat", "--recipe", "mine.yaml", "-o", "run", code=0)


def test_a_run_folder_may_be_a_link_itself(finished: Path, tmp_path: Path) -> None:
    finished.parent.rename(tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    assert "nothing to do" in run("qat", "--recipe", "mine.yaml", "-o", "run", code=0).output
    run("runs", "verify", "run", code=0)


def test_a_step_that_is_started_from_cannot_lead_out_of_its_folder(finished: Path, tmp_path: Path, model: Path) -> None:
    (finished / "note.txt").symlink_to(tmp_path / "secret.txt")
    start = f"name: mine\nmodel: {model}\nscheme: w4g64\nstart: {finished}\nexport: null\n"
    Path("start.yaml").write_text(start)
    told = run("qat", "--recipe", "start.yaml", "-o", "new", code=2).stderr
    assert "note.txt' is a link out of its folder" in told
    assert not Path("new").exists()
    (finished / "note.txt").unlink()
    run("qat", "--recipe", "start.yaml", "-o", "new", code=0)


@pytest.mark.parametrize("variant", ["../../../evil", "a/b", ".hidden", "a\0b", "a\nb", "x" * 300, {"a": 1}, None])
def test_the_name_in_a_manifest_that_is_started_from_names_no_folder(finished: Path, model: Path, variant: Any) -> None:
    """Steps that evaluate it would be called so."""
    if variant is None:  # no mapping at all
        (finished / "manifest.json").write_text("[]")
    else:
        rewrite(finished / "manifest.json", variant=variant)
    start = f"name: mine\nmodel: {model}\nscheme: w4g64\nstart: {finished}\nexport: null\nevaluate: [arith]\n"
    Path("start.yaml").write_text(start)
    told = run("plan", "start.yaml", code=0 if variant is None else 2).output
    assert ("manifest.json' calls its model" in told) is (variant is not None)


def test_a_finished_steps_mark_is_no_path(finished: Path) -> None:
    """`.step.json` of an unfinished step holds a fingerprint, which is compared and nothing else."""
    partial = finished.with_name("01-quantize-rtn.partial")
    finished.rename(partial)
    (partial / "manifest.json").unlink()
    (partial / ".step.json").write_text(json.dumps({"fingerprint": "../../evil", "step": "/etc/passwd"}))
    run("qat", "--recipe", "mine.yaml", "-o", "run", code=0)
    assert not list(Path().glob("**/*evil*"))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "other.safetensors", 7])
def test_a_config_cannot_name_other_weights(model: Path, name: Any) -> None:
    """transformers would load these, while the plan has looked at the others."""
    shutil.copy(model / "model.safetensors", model / "other.safetensors")
    rewrite(model / "config.json", transformers_weights=name)
    assert "transformers_weights is" in run(*quantize(model), code=2).stderr
    assert "transformers_weights is" in run("generate", model, "1", code=2).stderr


def test_a_tokenizers_settings_cannot_name_other_files(model: Path, tmp_path: Path) -> None:
    other = json.loads((model / "tokenizer.json").read_text())
    other["model"]["vocab"] = {}
    (tmp_path / "other.json").write_text(json.dumps(other))
    names = {"tokenizer_file": "../other.json", "vocab_file": str(tmp_path / "other.json")}
    names["fast_tokenizer_files"] = ["../other.json", "tokenizer.json"]  # type: ignore[assignment]
    whole = load_tokenizer(ModelKeys(path=str(model)), offline=True).get_vocab()
    rewrite(model / "tokenizer_config.json", **names)
    assert load_tokenizer(ModelKeys(path=str(model)), offline=True).get_vocab() == whole


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": 7}', '{"weight_map": {"a": ["b"]}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_in_the_hubs_cache_is_read_as_one_of_strangers(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"is damaged|not in its folder"):
        missing_files(tmp_path)


def test_the_index_of_a_training_checkpoint_names_no_file_that_is_read(tmp_path: Path) -> None:
    """Its tensors are looked for in the files of its folder; the index only has to know them all."""
    snapshot = Snapshot(1, {"a": torch.ones(2)}, {"step": 1}, {})
    checkpoint = write_checkpoint(tmp_path, snapshot)
    index = checkpoint / "model.safetensors.index.json"
    rewrite(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], "/etc/passwd"))
    tensors, _ = read_checkpoint(checkpoint)
    assert torch.equal(tensors["a"], torch.ones(2))
