"""Looking at a model without torch: what is read is right, and whatever is wrong is told in one line with a hint."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rqat import ModelError, UnknownName
from rqat.keys import ModelKeys
from rqat.model import hub
from rqat.model.config import check_quantizable, read_config
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def keys(folder: Path | str, **others: object) -> ModelKeys:
    return ModelKeys.model_validate({"path": str(folder), **others})


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def test_what_is_read(original: Path) -> None:
    config = read_config(keys(original))
    assert (config.model_type, config.blocks, config.hidden, config.vocab) == ("qwen3", 2, 128, 128)
    assert (config.context, config.tied, config.quantization) == (512, True, None)
    assert list(config.linears.items())[:7] == [
        ("model.layers.0.self_attn.q_proj", (128, 128)),
        ("model.layers.0.self_attn.k_proj", (64, 128)),
        ("model.layers.0.self_attn.v_proj", (64, 128)),
        ("model.layers.0.self_attn.o_proj", (128, 128)),
        ("model.layers.0.mlp.gate_proj", (256, 128)),
        ("model.layers.0.mlp.up_proj", (256, 128)),
        ("model.layers.0.mlp.down_proj", (128, 256)),
    ]
    assert len(config.linears) == 14
    assert config.bytes == 2 * config.parameters
    check_quantizable(config)


def test_shards_are_read_like_one_file(original: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(original).save_pretrained(tmp_path, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(original).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_config(keys(tmp_path)).tensors == read_config(keys(original)).tensors
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match="lacks model-00002"):
        read_config(keys(tmp_path))


def test_torch_is_not_imported(original: Path) -> None:
    code = (
        "import sys; from rqat.keys import ModelKeys; from rqat.model.config import *; "
        f"check_quantizable(read_config(ModelKeys(path={str(original)!r}))); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json' cannot be read"),
        (lambda f: (f / "config.json").write_text("{"), "config.json' cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK"), "is not a readable safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80" * 100), "is not a readable safetensors file"),
        (cut, "is damaged: "),
        (pickled, "has its weights in pickle files"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer"),
        (change_config(auto_map={"AutoModelForCausalLM": "m.M"}, model_type="own"), "needs modelling code"),
    ],
)
def test_damage_is_told(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        read_config(keys(folder))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_config(quantization_config={"quant_method": "gptq"}), "is quantized already (gptq)"),
        (change_config(model_type="gemma3"), "is of the architecture 'gemma3'"),
        (change_config(model_type="mixtral", num_experts=8), "is a mixture of experts (num_experts: 8)"),
        (change_config(num_hidden_layers=3), "lacks tensors that its config.json asks for: model.layers.2.self_attn"),
        (change_config(tie_word_embeddings=False), "lm_head.weight"),
    ],
)
def test_what_cannot_be_quantized_is_refused(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        check_quantizable(read_config(keys(folder)))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_config(keys(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="does not exist"):
        read_config(keys("a b"))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        read_config(keys(tmp_path / "file"))
    with pytest.raises(UnknownName, match="'builtin:tiny-raesoner' is not a built-in model"):
        read_config(keys("builtin:tiny-raesoner"))


def test_offline_lists_what_the_cache_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    with pytest.raises(ModelError) as caught:
        read_config(keys("nobody/no-such-model-rqat"), offline=True)
    assert "lacks: config.json, model.safetensors, tokenizer.json" in caught.value.message
    # A cache with the config only.
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda path, name, revision=None: str(tmp_path / "config.json")
    )
    with pytest.raises(ModelError, match=r"lacks: model\.safetensors, tokenizer\.json"):
        read_config(keys("nobody/no-such-model-rqat"), offline=True)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_sizes_that_config_json_does_not_say_are_told(folder: Path, key: str) -> None:
    change_config(**{key: None})(folder)
    with pytest.raises(ModelError, match=f"does not say {key}"):
        check_quantizable(read_config(keys(folder)))


def test_a_complete_cache_is_used_offline(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda path, name, revision=None: str(original / "config.json")
    )
    assert read_config(keys("somebody/tiny"), offline=True).folder == original
    assert hub.missing_files(original) == []


def test_identity_follows_the_contents_not_the_place(original: Path, folder: Path) -> None:
    before = read_config(keys(original)).identity()
    assert read_config(keys(folder)).identity() == before
    (folder / "README.md").write_text("words")
    assert read_config(keys(folder)).identity() == before
    change_config(rms_norm_eps=1e-5)(folder)
    changed = read_config(keys(folder)).identity()
    assert changed != before
    save_tiny(folder, seed=1)
    assert read_config(keys(folder)).identity() not in (before, changed)
