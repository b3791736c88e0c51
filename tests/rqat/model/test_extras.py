"""What a checkpoint brings along: told where it changes nothing here, refused where the model would be another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import rqat
from rqat.cli.app import build
from rqat.errors import ModelError
from rqat.generation.backend import open_served
from rqat.generation.sampling import end_tokens
from rqat.keys import ModelKeys
from rqat.model.config import read_config
from rqat.model.extras import check_checkpoint, generation_settings, remarks, unasked
from rqat.model.load import load_model
from tests.rqat.model.test_families import FAMILIES, random_model
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_tiny(tmp_path / "model")


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **values}))


def add_tensors(model: Path, *names: str) -> None:
    state = load_file(model / "model.safetensors")
    state |= {name: torch.ones(128) for name in names}
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(build(), [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def quantize(model: Path, out: object = "out", *more: object) -> Any:
    return run("quantize", model, "--method", "rtn", "--scheme", "w4g64", "-o", out, *more)


def said(model: Path) -> list[str]:
    return [f"{one.level}: {one.text}" for one in remarks(read_config(ModelKeys(path=str(model))))]


def test_a_revision_of_what_is_no_hub_model_is_told(model: Path) -> None:
    for path in (str(model), "builtin:tiny-reasoner"):
        found = [one.text for one in remarks(read_config(ModelKeys(path=path, revision="main")))]
        assert any("revision 'main' is not looked at" in text for text in found)
        assert not any("revision" in one.text for one in remarks(read_config(ModelKeys(path=path))))


# ------------------------------------------------------------------------------------------------ generation settings


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9},
        {"top_p": 0.5, "top_k": 3},
        {"do_sample": True, "temperature": 0.0},
        {"num_beams": "x"},
        {"max_length": -3, "max_new_tokens": 2},
        {"repetition_penalty": 1.3, "suppress_tokens": [5]},
        {"of_another_version": [1, {"a": None}]},
    ],
)
def test_settings_of_a_checkpoint_stop_nothing_and_are_told_and_exported(model: Path, settings: dict[str, Any]) -> None:
    change(model / "generation_config.json", **settings)
    done = quantize(model)
    assert done.exit_code == 0, done.stderr
    for key in settings:
        assert key in done.stderr
    assert "not used here" in done.stderr
    exported = json.loads(Path("out/generation_config.json").read_text())
    assert {key: exported[key] for key in settings} == settings
    told = json.loads(Path("out/rqat.json").read_text())["told"]
    assert any("not used here" in line for line in told)
    assert run("generate", "out", "1+1=", "--max-new-tokens", "2").exit_code == 0


def test_settings_that_transformers_refuses_stop_no_reader(model: Path) -> None:
    change(model / "generation_config.json", temperature=0.9, cache_implementation="none", watermarking_config={"a": 1})
    done = quantize(model)
    assert done.exit_code == 0, done.stderr
    assert "transformers refuses the model's generation settings; they are exported as they are." in done.stderr
    shown = run("generate", "out", "1+1=", "--max-new-tokens", "2", "--backend", "packed")
    assert shown.exit_code == 0, shown.stderr
    assert end_tokens(*open_served(ModelKeys(path="out"))) == {1}
    rqat.save(rqat.load("out"), "saved")
    assert Path("saved/generation_config.json").read_text() == Path("out/generation_config.json").read_text()


def test_settings_that_stand_in_config_json_are_told_as_well(model: Path) -> None:
    (model / "generation_config.json").unlink()
    change(model / "config.json", temperature=0.9, repetition_penalty=1.3)
    assert any("temperature 0.9, repetition_penalty 1.3" in line for line in said(model))
    assert quantize(model).exit_code == 0


BROKEN = ('{"eos_token_id": "a"}', '{"eos_token_id": [1, -2]}', "[1]", '{"eos_token_id"', "[" * 9999)


@pytest.mark.parametrize("text", BROKEN)
def test_end_tokens_that_would_be_lost_in_silence_are_refused(model: Path, text: str) -> None:
    (model / "generation_config.json").write_text(text)
    for done in (quantize(model), run("generate", model, "1+1=")):
        assert done.exit_code == 2
        assert "generation_config.json" in done.stderr
    assert not Path("out").exists()


def test_a_model_without_settings_has_none(model: Path) -> None:
    (model / "generation_config.json").unlink()
    assert generation_settings(model) == {}
    assert said(model) == []


# ------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "mlp.down_proj.bias", "mlp.experts.weight"])
def test_tensors_within_blocks_that_the_config_does_not_know_are_refused(model: Path, name: str) -> None:
    add_tensors(model, f"model.layers.1.{name}")
    for done in (quantize(model), run("generate", model, "1"), run("eval", "arith", model, "--limit", "1")):
        assert done.exit_code == 2
        assert f"model.layers.1.{name} within its blocks" in done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["model"]


def test_transformers_own_list_decides_for_families_that_are_not_known(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pre-flight does not know, loading does."""
    add_tensors(model, "model.layers.0.self_attn.q_proj.bias")
    monkeypatch.setattr("rqat.model.load.check_checkpoint", lambda config: None)
    with pytest.raises(ModelError, match="bias within its blocks"):
        load_model(ModelKeys(path=str(model)))


def test_a_tied_head_that_is_stored_too_has_to_be_the_embedding(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5 would not tie them, other readers would: the model in memory is not the one that is served."""
    state = load_file(model / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    for number, changed in enumerate((embedding.clone(), embedding * 2)):
        save_file(state | {"lm_head.weight": changed}, model / "model.safetensors", metadata={"format": "pt"})
        done = quantize(model, f"out{number}")
        assert done.exit_code == 2 * number, done.stderr
    assert "ties lm_head to the embedding, and lm_head.weight is stored with other values" in done.stderr
    assert "lm_head.weight" not in load_file("out0/model.safetensors")
    assert not Path("out1").exists()
    monkeypatch.setattr("rqat.model.extras.SAMPLES", 0)  # then loading tells
    with pytest.raises(ModelError, match="readers disagree on which of the two counts"):
        load_model(ModelKeys(path=str(model)))


def test_tensors_beside_the_model_are_left_out_and_told(model: Path) -> None:
    add_tensors(model, "v_head.summary.weight", "model.layers.2.self_attn.q_proj.weight", "visual.patch.weight")
    done = quantize(model)
    assert done.exit_code == 0
    assert "Warning: MODEL: " in done.stderr
    assert "model.layers.2.self_attn.q_proj.weight, v_head.summary.weight, visual.patch.weight" in done.stderr
    assert "left out" in " ".join(json.loads(Path("out/rqat.json").read_text())["told"])


def test_weights_with_more_digits_than_memory_holds_are_told(model: Path) -> None:
    def told(device: str, **keys: Any) -> list[str]:
        return [f"{one.text} {one.hint}" for one in remarks(read_config(ModelKeys(path=str(model), **keys)), device)]

    assert told("cuda") == told("cpu") == []
    state = {name: tensor.half() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    assert told("cpu") == told("cuda", dtype="float32") == []
    note = "100 % of its weights are stored in float16; in memory they are rounded to bfloat16."
    assert told("cuda") == told("cpu", dtype="bfloat16") == [f"{note} `model.dtype: float32` keeps them."]


def test_tensors_nobody_misses_are_not_told(model: Path) -> None:
    add_tensors(model, "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    assert said(model) == []
    assert quantize(model).exit_code == 0


@pytest.mark.parametrize("name", ["Qwen3ForSequenceClassification", "Qwen2ForRewardModel"])
def test_a_model_that_writes_no_text_is_refused(model: Path, name: str) -> None:
    change(model / "config.json", architectures=[name])
    add_tensors(model, "score.weight")
    for done in (quantize(model), run("generate", model, "1")):
        assert done.exit_code == 2
        assert f"is a {name}, which writes no text" in done.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_has_tensors_that_are_not_asked_for(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = read_config(ModelKeys(path=str(tmp_path)))
    assert config.tensors
    assert unasked(config) == []
    check_checkpoint(config)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers_of_git_lfs_are_named(model: Path, name: str) -> None:
    (model / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    for done in (quantize(model), run("generate", model, "1")):
        assert done.exit_code == 2
        assert f"holds Git LFS pointers in place of {name}" in done.stderr
        assert "lfs pull" in done.stderr


def test_a_token_past_the_embedding_is_named(model: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"x{number}" for number in range(128 - len(tokenizer))] + ["[PAD]"])
    tokenizer.save_pretrained(model)
    for done in (quantize(model), run("generate", model, "1")):
        assert done.exit_code == 2
        assert "1 tokens past the model's vocabulary, which ends at 127: '[PAD]' (128)" in done.stderr
        assert "resize_token_embeddings" in done.stderr


@pytest.fixture
def cached(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `some/model` in the hub's cache, which has no chat template."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    snapshot = repository / "snapshots" / "c0ffee"
    shutil.copytree(model, snapshot)
    monkeypatch.setattr("rqat.model.hub._cache_folder", lambda keys: snapshot)
    return snapshot


def test_a_cache_that_may_lack_the_chat_template_is_told(cached: Path) -> None:
    keys = ModelKeys(path="some/model")
    assert any("no chat_template.jinja" in one.text for one in remarks(read_config(keys)))
    (cached / "tokenizer_config.json").unlink()
    (cached / "generation_config.json").unlink()
    told = " ".join(one.text for one in remarks(read_config(keys)))
    assert "no tokenizer_config.json and no generation_config.json and no chat_template.jinja" in told


def test_a_cache_that_knows_or_has_the_chat_template_is_whole(cached: Path) -> None:
    keys = ModelKeys(path="some/model")
    known = cached.parent.parent / ".no_exist" / "c0ffee" / "chat_template.jinja"
    known.parent.mkdir(parents=True)
    known.touch()
    assert list(remarks(read_config(keys))) == []
    known.unlink()
    (cached / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert list(remarks(read_config(keys))) == []
    (cached / "chat_template.jinja").unlink()
    change(cached / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert list(remarks(read_config(keys))) == []


def test_what_is_uncertain_is_asked_for_once_where_the_hub_can_be_reached(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[tuple[str, str, str]] = []

    def download(path: str, name: str, revision: str) -> None:
        asked.append((path, name, revision))
        (cached / name).write_text("{{ messages[0].content }}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for _ in range(2):
        read_config(ModelKeys(path="some/model"))
    assert asked == [("some/model", "chat_template.jinja", "c0ffee")]
    assert list(remarks(read_config(ModelKeys(path="some/model")))) == []


# ------------------------------------------------------------------------------------------------ sizes and places


def test_the_estimate_of_the_disk_holds_for_a_float32_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model(vocab=4000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-5 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    Path("mine.yaml").write_text("name: mine\nmodel: model\nscheme: w4g64\nquantize: rtn\nexport: null\n")
    plan = json.loads(run("plan", "mine.yaml", "--json").stdout)
    [step] = plan["steps"]
    assert run("qat", "--recipe", "mine.yaml", "-o", "run").exit_code == 0
    written = sum(path.stat().st_size for path in Path("run", step["name"]).iterdir() if path.suffix == ".safetensors")
    assert written <= step["disk_bytes"] * 1.02  # headers are not counted


def checkpoint(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_is_there_is_filled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantize(model).exit_code == 0
    names = checkpoint(Path("out"))
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("nowhere")
    assert quantize(model, "link").exit_code == 0
    assert Path("link").is_symlink()
    assert quantize(model, "dangling").exit_code == 0
    assert checkpoint(Path("real")) == checkpoint(Path("nowhere")) == names
    assert "finished already" in quantize(model, "link").stderr
    Path("here").mkdir()
    monkeypatch.chdir("here")
    assert quantize(model, ".").exit_code == 0
    assert Path.cwd() == tmp_path / "here"
    assert checkpoint(Path()) == names
    assert checkpoint(tmp_path) == ["dangling", "here", "link", "model", "nowhere", "out", "real"]


def test_any_name_and_place_of_a_folder_will_do(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, letters of any alphabet, links to its files, another folder to be asked from, another place later."""
    place = tmp_path / "mo del: \u00fc, \u6f22"
    (place / "files").mkdir(parents=True)
    for path in list(model.iterdir()):
        path.rename(place / "files" / path.name)
        path.symlink_to(place / "files" / path.name)
    model.rename(place / "a model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = quantize(Path("..") / place.name / "a model", "the output")
    assert done.exit_code == 0, done.stderr
    Path("the output").rename("moved")
    assert run("generate", "moved", "1+1=", "--max-new-tokens", "2").exit_code == 0


def test_an_interruption_while_a_folder_is_filled_costs_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantize(model).exit_code == 0
    Path("there").mkdir()
    replace, moved = Path.replace, []

    def stop(path: Path, target: Path) -> Path:
        if Path(target).parent.name == "there":
            moved.append(path.name)
            if len(moved) == 3:
                raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        assert (
            CliRunner()
            .invoke(build(), ["quantize", str(model), "--method", "rtn", "--scheme", "w4g64", "-o", "there"])
            .exit_code
            == 130
        )
    assert not Path("there/rqat.json").exists()
    assert quantize(model, "there").exit_code == 0
    assert checkpoint(Path("there")) == checkpoint(Path("out"))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("there", name).read_bytes() == Path("out", name).read_bytes()
