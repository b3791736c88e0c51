"""The exported folder is the model in memory: through plain transformers, logits are equal to the bit."""

import importlib.util
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from rqat import Exporter, NumericsError, PluginError, QuantizedWeight, Scheme
from rqat.job import Job
from rqat.model import exported as exported_model
from rqat.model import hf_folder
from rqat.model.checkpoint import load_checkpoint, save_checkpoint
from rqat.model.reader import one_ahead
from rqat.model.tensor_file import Lying, TensorFile
from rqat.model.tensors import write_tensors
from rqat.registry import Registry
from rqat.stage import Step, Use
from rqat.stages.export import ExportKeys
from rqat.stages.export import run as export
from rqat_kernels.grid import dequantize, fit_minmax, quantize
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer

START = "01-quantize-rtn"
GROUPS = ("g32", "g64", "g128", "-row")
GRIDS = [f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group in GROUPS for sym in ("", "-sym")]
PEER_GROUPS = (("g128", ""), ("g128", "-sym"), ("g32", ""), ("-row", "-sym"))


def quantize_model(
    model: transformers.PreTrainedModel, scheme: Scheme, skip: str = "lm_head"
) -> dict[str, QuantizedWeight]:
    """Rounds every linear layer whose name does not end in `skip`, in place."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith((skip, "lm_head")):
            weight = module.weight.data
            scale, zero = fit_minmax(
                weight, scheme.groups(weight.shape[1]), scheme.max_code, symmetric=scheme.symmetric
            )
            codes = quantize(weight, scale, zero, scheme.max_code)
            layers[name] = QuantizedWeight(codes, scale, zero.to(torch.uint8), scheme=scheme)
            weight.copy_(dequantize(codes, scale, zero))
    return layers


def prepare(
    folder: Path,
    spelling: str,
    *,
    tied: bool = True,
    skip: str = "lm_head",
    format_name: str = "compressed-tensors",
    model: transformers.PreTrainedModel | None = None,
) -> tuple[Job, Step, transformers.PreTrainedModel]:
    """A run folder with a finished quantize step, the export step after it, and the quantized model."""
    scheme = Scheme.parse(spelling)
    model = model or tiny_model(tied=tied)
    layers = quantize_model(model, scheme, skip)
    (folder / START).mkdir(parents=True)
    save_checkpoint(folder / START, model, tiny_tokenizer(), layers)
    registry = Registry.discover()
    card = registry.card("exporter", format_name)
    use = Use(card, registry.options(card, {}))
    step = Step("02-export", "export", "rtn", ExportKeys(format=format_name), {"exporter": use}, {"start": START})
    plan = SimpleNamespace(model=SimpleNamespace(path="someone/tiny-qwen"), scheme=scheme, steps=())
    job = Job(plan, folder, registry)  # type: ignore[arg-type]
    job.workdir(step).mkdir()
    return job, step, model


def exported(job: Job, step: Step) -> Path:
    return job.workdir(step) / "model"


@pytest.mark.parametrize("spelling", GRIDS)
def test_plain_transformers_gives_the_same_logits(tmp_path: Path, spelling: str) -> None:
    job, step, _ = prepare(tmp_path, spelling)
    facts = export.run(job, step)
    assert facts["max_abs_diff"] == 0.0
    assert facts["decoded"] == "every layer equal, bit by bit"
    assert facts["layers"] == 14
    assert facts["left_as_they_were"] == ["lm_head"]
    assert facts["float32_tensors"] == 0
    assert json.dumps(facts)


def test_from_pretrained_without_the_stage(tmp_path: Path) -> None:
    """The same comparison, with nothing of rqat between the folder and the logits."""
    job, step, model = prepare(tmp_path, "w2g32", tied=False)
    export.run(job, step)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported(job, step), dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported(job, step))
    tokens = tokenizer("1 + 2 = 3", return_tensors="pt").input_ids
    assert tokens.tolist() == tiny_tokenizer()("1 + 2 = 3", return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_stored_once(tmp_path: Path, tied: bool) -> None:
    job, step, _ = prepare(tmp_path, "w4g128", tied=tied)
    assert export.run(job, step)["max_abs_diff"] == 0.0
    stored = load_file(exported(job, step) / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert stored["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert "model.layers.0.mlp.up_proj.weight" not in stored
    assert json.loads((exported(job, step) / "config.json").read_text())["tie_word_embeddings"] is tied


def test_layers_left_out_stay_as_they_were(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w2g64", skip="down_proj")
    facts = export.run(job, step)
    assert facts["max_abs_diff"] == 0.0
    assert facts["left_as_they_were"] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head"]


def test_a_float32_tensor_that_bfloat16_does_not_hold_keeps_its_values(tmp_path: Path) -> None:
    job, step, model = prepare(tmp_path, "w4g128")
    norm = model.model.norm.weight
    with torch.no_grad():
        norm.add_(1e-5)
    layers = load_checkpoint(tmp_path / START).layers
    save_checkpoint(tmp_path / START, model, tiny_tokenizer(), layers)
    facts = export.run(job, step)
    assert facts["float32_tensors"] == 1
    assert facts["max_abs_diff"] == 0.0
    assert torch.equal(load_file(exported(job, step) / "model.safetensors")["model.norm.weight"], norm)


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_folder, "SHARD", 50_000)
    job, step, _ = prepare(tmp_path, "w3g128")
    assert export.run(job, step)["max_abs_diff"] == 0.0
    index = json.loads((exported(job, step) / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2


def test_the_same_model_gives_the_same_bytes_over_the_remains_of_an_interrupted_export(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w3g128")
    export.run(job, step)
    first = {path.name: path.read_bytes() for path in exported(job, step).iterdir()}
    (exported(job, step) / "model-00001-of-00009.safetensors").write_bytes(b"remains")
    export.run(job, step)
    assert {path.name: path.read_bytes() for path in exported(job, step).iterdir()} == first


def test_older_readers_find_their_names(tmp_path: Path) -> None:
    """transformers 4 would otherwise take its default rotary base, and knows no TokenizersBackend."""
    job, step, _ = prepare(tmp_path, "w4g128")
    export.run(job, step)
    config = json.loads((exported(job, step) / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    tokenizer = json.loads((exported(job, step) / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in tokenizer


def test_scaled_rotary_embeddings_survive(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w4g128")
    path = tmp_path / START / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    path.write_text(json.dumps(config))
    assert export.run(job, step)["max_abs_diff"] == 0.0
    loaded = transformers.AutoConfig.from_pretrained(exported(job, step))
    assert loaded.rope_parameters == config["rope_parameters"]


def test_model_card(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w2g64-sym", skip="down_proj")
    export.run(job, step)
    text = (exported(job, step) / "README.md").read_text()
    assert text.startswith("---\nbase_model: someone/tiny-qwen\nlibrary_name: transformers\n")
    assert "# tiny-qwen, w2g64-sym" in text.replace("someone/", "")
    assert "`model.layers.1.mlp.down_proj`" in text
    assert "Seen to load it: transformers 5" in text


@pytest.mark.parametrize("format_name", ["compressed-tensors", "gptq"])
def test_a_model_card_promises_no_server_that_refuses(tmp_path: Path, format_name: str) -> None:
    job, step, _ = prepare(tmp_path, "w2g128", format_name=format_name)
    export.run(job, step)
    text = (exported(job, step) / "README.md").read_text()
    assert "vllm 0.32.0 (CPU) refuses it: " in text
    assert "vllm serve" not in text


def test_a_model_card_says_that_parts_of_a_fused_layer_were_left_out(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w4g128", skip="q_proj")
    export.run(job, step)
    text = (exported(job, step) / "README.md").read_text()
    assert "refuses it: it computes q_proj and k_proj and v_proj as one layer, and here their schemes differ" in text
    assert "vllm serve" not in text


@pytest.mark.parametrize("format_name", ["compressed-tensors", "rqat", "bf16"])
@pytest.mark.parametrize("spelling", ["w4-row", "w3-row", "w2g8", "w3g8", "w8-row-sym"])
def test_any_number_of_output_features_can_be_written(tmp_path: Path, format_name: str, spelling: str) -> None:
    """Zero points of 172 rows end within a word: the packed tensor is then a view of something larger."""
    config = tiny_config()
    config.intermediate_size = 172 if spelling.endswith(("row", "sym")) else 168
    torch.manual_seed(0)
    job, step, _ = prepare(tmp_path, spelling, format_name=format_name, model=Qwen3ForCausalLM(config).eval())
    facts = export.run(job, step)
    assert facts["max_abs_diff"] == 0.0


def test_every_file_takes_views_of_something_larger(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    views = {"start": whole[:5], "end": whole[7:], "column": whole.view(6, 2)[:, :1], "turned": whole.view(3, 4).T}
    shards = hf_folder.ShardWriter(tmp_path)
    for name, view in views.items():
        shards.add(name, view)
    shards.close()
    write_tensors(tmp_path / "other.safetensors", views, {})
    for stored in (load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "other.safetensors")):
        assert {name: tensor.tolist() for name, tensor in stored.items()} == {
            name: tensor.tolist() for name, tensor in views.items()
        }


def test_model_card_of_a_local_folder_does_not_name_its_path(tmp_path: Path) -> None:
    job, step, _ = prepare(tmp_path, "w4g128")
    job.plan.model.path = "/home/someone/secret/my-model"  # type: ignore[misc]
    export.run(job, step)
    text = (exported(job, step) / "README.md").read_text()
    assert "# my-model, w4g128" in text
    assert "secret" not in text
    assert "base_model" not in text


def test_gptq_is_decoded_and_says_why_it_was_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step, _ = prepare(tmp_path, "w3g128", format_name="gptq")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    facts = export.run(job, step)
    assert facts["decoded"] == "every layer equal, bit by bit"
    assert facts["max_abs_diff"] is None
    assert facts["reload"] == "not checked: gptqmodel and optimum not installed"


def test_an_exporter_that_moves_weights_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step, _ = prepare(tmp_path, "w4g128")
    exporter = job.make(step, "exporter")
    right = exporter.tensors

    def wrong(name, weight):
        tensors = right(name, weight)
        if name.endswith("1.mlp.up_proj"):
            tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"] * 2
        return tensors

    monkeypatch.setattr(exporter, "tensors", wrong)
    monkeypatch.setattr(Job, "make", lambda *_: exporter)
    with pytest.raises(PluginError, match=r"changes the scale of model\.layers\.1\.mlp\.up_proj"):
        export.run(job, step)
    monkeypatch.setattr(type(exporter), "decode", Exporter.decode)
    with pytest.raises(NumericsError, match="is not the model that was exported"):
        export.run(job, step)


@pytest.mark.parametrize(
    ("format_name", "skip", "scheme", "blocks"),
    [("compressed-tensors", "down_proj", "w4g64-sym", 1), ("bf16", "lm_head", "w4g64", 2)],
)
def test_a_model_that_is_not_small_is_checked_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str, skip: str, scheme: str, blocks: int
) -> None:
    """One block tells all of a symmetric scheme, where every layer was decoded before; bf16 decodes nothing."""
    monkeypatch.setattr(exported_model, "SMALL", 1000)
    job, step, _ = prepare(tmp_path, scheme, skip=skip, format_name=format_name)
    facts = export.run(job, step)
    assert facts["reload"] == f"transformers {transformers.__version__}, {blocks} of 2 blocks"
    assert facts["max_abs_diff"] == 0.0


@pytest.mark.parametrize("block", [0, 1])
def test_the_check_block_by_block_finds_a_wrong_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(exported_model, "SMALL", 1000)
    job, step, _ = prepare(tmp_path, "w2g64", format_name="bf16")
    exporter = job.make(step, "exporter")
    right = exporter.tensors

    def wrong(name, weight):
        factor = 2 if name.endswith(f"{block}.mlp.up_proj") else 1
        return {key: tensor * factor for key, tensor in right(name, weight).items()}

    monkeypatch.setattr(exporter, "tensors", wrong)
    monkeypatch.setattr(Job, "make", lambda *_: exporter)
    with pytest.raises(NumericsError, match="its hidden states differ"):
        export.run(job, step)


@pytest.mark.parametrize(
    ("damaged", "error"),
    [
        ("model.embed_tokens.weight", NumericsError),
        ("model.layers.1.input_layernorm.weight", NumericsError),
        ("model.layers.1.mlp.up_proj.weight_packed", PluginError),
    ],
)
def test_one_byte_that_the_disk_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(exported_model, "SMALL", 1000)
    job, step, _ = prepare(tmp_path, "w4g64")
    exporter = job.make(step, "exporter")
    right = exporter.write

    def wrong(folder, reader, layers):
        right(folder, reader, layers)
        path = folder / "model.safetensors"
        lying, content = TensorFile(path).tensors[damaged], bytearray(path.read_bytes())
        content[lying.start + lying.nbytes - 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(exporter, "write", wrong)
    monkeypatch.setattr(Job, "make", lambda *_: exporter)
    with pytest.raises(error, match=f"{damaged} was changed" if error is NumericsError else "changes the codes of"):
        export.run(job, step)


def test_what_is_not_quantized_is_in_memory_in_pieces_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_model, "SMALL", 1000)
    job, step, _ = prepare(tmp_path, "w4g64")
    right, config = Lying.read, tiny_config()
    stored = TensorFile(job.result_of(START) / "model.safetensors").tensors["model.embed_tokens.weight"]
    embedding = (config.vocab_size, config.hidden_size), stored.dtype

    def read(lying: Lying) -> torch.Tensor:
        assert (lying.shape, lying.dtype) != embedding, "the embedding is read as a whole"
        return right(lying)

    monkeypatch.setattr(Lying, "read", read)
    assert export.run(job, step)["max_abs_diff"] == 0.0


@pytest.mark.parametrize("spelling", GRIDS[::5])
def test_plain_16_bit_weights(tmp_path: Path, spelling: str) -> None:
    """Everything loads them: config.json says nothing of quantization."""
    job, step, model = prepare(tmp_path, spelling, format_name="bf16")
    facts = export.run(job, step)
    assert facts["max_abs_diff"] == 0.0, "compared with weights that are rounded as the file's"
    assert "quantization_config" not in json.loads((exported(job, step) / "config.json").read_text())
    stored = load_file(exported(job, step) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    for name, parameter in model.named_parameters():
        assert torch.equal(stored[name], parameter.detach().bfloat16()), name


def test_a_config_that_names_no_method_is_the_plugins_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step, _ = prepare(tmp_path, "w4g128")
    exporter = job.make(step, "exporter")
    monkeypatch.setattr(exporter, "config", lambda layers, skipped: {})
    monkeypatch.setattr(Job, "make", lambda *_: exporter)
    with pytest.raises(PluginError, match=r"CompressedTensors\.config\(\) gives .* without a quant_method") as error:
        export.run(job, step)
    assert "return None" in error.value.hint
    assert not list(exported(job, step).iterdir()), "told before any work"


def test_two_tensors_of_one_name_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step, _ = prepare(tmp_path, "w4g128")
    exporter = job.make(step, "exporter")
    monkeypatch.setattr(exporter, "tensors", lambda name, weight: {"packed": weight.codes})
    monkeypatch.setattr(Job, "make", lambda *_: exporter)
    with pytest.raises(PluginError, match="'packed' is written twice"):
        export.run(job, step)


@pytest.mark.peers
@pytest.mark.parametrize("skip", ["lm_head", "down_proj"])
@pytest.mark.parametrize("spelling", [f"w{bits}{group}{sym}" for bits in (2, 3, 4, 8) for group, sym in PEER_GROUPS])
def test_gptqmodel_gives_nearly_the_same_logits(
    tmp_path: Path, spelling: str, skip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")  # with two cores it refuses to start by itself
    pytest.importorskip("gptqmodel")
    job, step, _ = prepare(tmp_path, spelling, skip=skip, format_name="gptq")
    facts = export.run(job, step)
    print(spelling, skip, facts["max_abs_diff"], facts["tolerance"])
    assert facts["max_abs_diff"] <= facts["tolerance"]


def test_the_next_layer_is_read_while_one_is_worked_with():
    """In order, one ahead and no more; what goes wrong in reading comes up where that one's turn would be."""
    begun = [threading.Event() for _ in range(4)]

    def reading():
        for number in range(3):
            begun[number].set()
            yield number
        begun[3].set()
        raise OSError("the disk fails")

    given = one_ahead(reading())
    for number in range(3):
        assert next(given) == number
        assert begun[number + 1].wait(60)
        assert not any(each.is_set() for each in begun[number + 2 :])
    with pytest.raises(OSError, match="the disk fails"):
        next(given)
