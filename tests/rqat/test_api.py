"""The Python face: the same bytes as the stages, any loop and any trainer, and mistakes told in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_constant_schedule

import rqat
from rqat.job import Job
from rqat.pipeline import run_pipeline
from rqat.registry import Registry
from rqat.stages.quantize.command import quantize_plan
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TEXTS = [f"{a}+{b}={a + b}" for a in range(12) for b in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def quantized(folder: Path) -> rqat.QuantizedModel:
    return rqat.quantize(folder, method="rtn", scheme="w2g32", device="cpu")


def train(quantized: rqat.QuantizedModel, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """A plain loop."""
    for step in range(start, start + steps):
        batch = quantized.tokenizer(TEXTS[4 * step : 4 * step + 4], padding=True, return_tensors="pt")
        quantized.model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def same(one: rqat.QuantizedModel, two: rqat.QuantizedModel) -> bool:
    return one.layers.keys() == two.layers.keys() and all(
        layer.equals(two.layers[name]) for name, layer in one.layers.items()
    )


def test_importing_the_face_does_not_import_torch() -> None:
    code = "import sys, rqat; assert rqat.Scheme; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [name for name in rqat.__all__ if not hasattr(rqat, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        rqat.quantise  # noqa: B018


def test_it_gives_the_bytes_of_the_stages(folder: Path, tmp_path: Path) -> None:
    calibration: dict[str, Any] = {"source": "arith", "samples": 8, "tokens": 64}
    plan = quantize_plan(
        Registry.discover(),
        str(folder),
        "gptq",
        scheme="w2g32",
        calibration=calibration,
        options={"damp": 0.02, "skip": ["*.down_proj"]},
        export="gptq",
    )
    run_pipeline(Job(plan, tmp_path / "run", Registry.discover()))
    quantized = rqat.quantize(
        folder, method="gptq", scheme="w2g32", calibration=calibration, skip=["*.down_proj"], damp=0.02, device="cpu"
    )
    step = next((tmp_path / "run").glob("*-quantize-gptq"))
    saved = rqat.save(quantized, tmp_path / "saved")
    for name in ("model.safetensors", "quantized.safetensors", "config.json"):
        assert (saved / name).read_bytes() == (step / name).read_bytes(), name
    assert same(quantized, rqat.load(step, device="cpu"))
    rqat.export(quantized, tmp_path / "out", "gptq")
    exported = next((tmp_path / "run").glob("*-export")) / "model"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_a_loaded_model_is_quantized_in_place_on_rows_of_any_kind() -> None:
    found = []
    for rows in (TEXTS, [{"prompt": "", "completion": text} for text in TEXTS], {"rows": TEXTS, "pack": False}):
        model = tiny_model()
        model.train()
        quantized = rqat.quantize(model, tiny_tokenizer(), scheme="w3g64", calibration=rows)
        assert quantized.model is model
        assert model.training
        assert all(layer.scheme == rqat.Scheme.parse("w3g64") for layer in quantized.layers.values())
        found.append(quantized)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_plain_loop_trains_saves_and_loads(quantized: rqat.QuantizedModel, tmp_path: Path) -> None:
    before = {name: layer.codes.clone() for name, layer in quantized.layers.items()}
    optimizer = quantized.optimizer(lr=1e-2, scale_lr=1e-3)
    assert isinstance(optimizer, rqat.QuantizedOptimizer)
    train(quantized, optimizer, 3)
    assert any(not layer.codes.equal(before[name]) for name, layer in quantized.layers.items())
    quantized.model.config.use_cache = False
    rqat.save(quantized, tmp_path / "trained")
    loaded = rqat.load(tmp_path / "trained", device="cpu")
    assert same(loaded, quantized)
    assert loaded.model.config.use_cache is True, "what a trainer switched off is not saved"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, quantized.model(ids).logits)
    latents, again = optimizer.latents(), loaded.optimizer(lr=1e-2).latents()
    name = next(iter(latents))
    # Those that left the grid altogether are saved at its border.
    close = torch.isclose(latents[name], again[name], atol=1e-4)
    assert close.float().mean() > 0.9, "latent weights resume where they were"


def test_latent_weights_start_at_those_before_quantization(quantized: rqat.QuantizedModel) -> None:
    name = "model.layers.0.mlp.up_proj"
    source = tiny_model().get_parameter(f"{name}.weight")
    weight = quantized.model.get_parameter(f"{name}.weight").detach().clone()
    known = quantized.optimizer(lr=1e-3).latents()[name].clone()
    assert (known - source).abs().mean() < 0.5 * (weight - source).abs().mean()
    quantized.source = None
    assert torch.equal(quantized.optimizer(lr=1e-3).latents()[name], weight)
    assert torch.equal(quantized.optimizer(lr=1e-3, source=tiny_model()).latents()[name], known)


def test_a_resumed_loop_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    unbroken, first = (rqat.quantize(folder, method="rtn", scheme="w2g32", device="cpu") for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-2, "scale_lr": 1e-3, "other_lr": 1e-3}
    train(unbroken, unbroken.optimizer(**settings), 4)
    optimizer = first.optimizer(**settings)
    train(first, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = rqat.quantize(folder, method="rtn", scheme="w2g32", device="cpu")
    optimizer = second.optimizer(**settings)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(second, optimizer, 2, start=2)
    assert same(unbroken, second)
    for name, parameter in unbroken.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), name


@pytest.mark.slow
def test_it_trains_in_a_plain_sft_trainer_and_resumes(folder: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def trained(steps: int, resume: bool = False) -> rqat.QuantizedModel:
        quantized = rqat.quantize(folder, method="rtn", scheme="w2g32", device="cpu")
        optimizer = quantized.optimizer(lr=1e-2)
        config = SFTConfig(
            output_dir=str(tmp_path / ("resumed" if resume or steps == 2 else "unbroken")),
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=4,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        trainer = SFTTrainer(
            model=quantized.model,
            processing_class=quantized.tokenizer,
            args=config,
            train_dataset=Dataset.from_list([{"text": text} for text in TEXTS]),
            optimizers=(optimizer, get_constant_schedule(optimizer)),
        )
        trainer.train(resume_from_checkpoint=resume)
        return quantized

    unbroken = trained(4)
    half = trained(2)
    resumed = trained(4, resume=True)
    assert not same(half, unbroken)
    assert same(resumed, unbroken)
    rqat.save(resumed, tmp_path / "saved")
    assert same(rqat.load(tmp_path / "saved", device="cpu"), unbroken)


def test_transforms_stand_in_front_of_the_quantizer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RQAT_PLUGINS", str(Path(__file__).parents[1] / "third_party" / "acme_rotation.py"))
    Registry.discover()
    try:
        method = [{"method": "acme-rotate"}, "acme-int8", "rtn"]
        quantized = rqat.quantize(folder, method=method, scheme="w8g32", device="cpu")
        loaded = rqat.load(rqat.save(quantized, tmp_path / "saved"), device="cpu")
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            logits, original = quantized.model(ids).logits, tiny_model()(ids).logits
            assert torch.equal(loaded.model(ids).logits, logits)
        assert 0 < (logits - original).abs().max() < 0.1 * original.abs().max()
        weight = quantized.model.get_parameter("model.layers.0.mlp.up_proj.weight").detach()
        start = quantized.optimizer(lr=1e-3).latents()["model.layers.0.mlp.up_proj"]
        assert 0 < (start - weight).abs().max() < 0.1 * weight.abs().max(), "latents are those of the rotated model"
        with pytest.raises(rqat.ModelError, match="whose forward hooks no checkpoint format holds"):
            rqat.export(loaded, tmp_path / "out")
    finally:
        sys.modules.pop("acme_rotation", None)
        monkeypatch.delenv("RQAT_PLUGINS")
        Registry.discover()


def test_a_source_that_asks_for_the_model_is_refused_at_any_depth(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RQAT_PLUGINS", str(Path(__file__).parents[1] / "third_party" / "acme_traces.py"))
    Registry.discover()
    traces = {"source": "acme-traces", "prompts": [{"source": "arith"}]}
    try:
        for calibration in (traces, {"source": "mix", "parts": [{"source": "arith"}, traces]}):
            with pytest.raises(rqat.RecipeError, match="'acme-traces' writes its rows with the model") as found:
                rqat.quantize(folder, calibration=calibration, device="cpu")
            assert "rows of your own" in found.value.hint
    finally:
        sys.modules.pop("acme_traces", None)
        monkeypatch.delenv("RQAT_PLUGINS")
        Registry.discover()


def test_exporting_what_was_trained(quantized: rqat.QuantizedModel, tmp_path: Path) -> None:
    train(quantized, quantized.optimizer(lr=1e-2), 2)
    facts = rqat.export(quantized, tmp_path / "out", "compressed-tensors")
    assert facts["format"] == "compressed-tensors"
    assert facts["max_abs_diff"] == 0.0
    packed = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.weight_packed" in packed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"], "nothing is left beside it"


def test_evaluating_a_model_in_memory_and_its_folder(quantized: rqat.QuantizedModel, tmp_path: Path) -> None:
    rqat.save(quantized, tmp_path / "saved")
    quantized.model.train()
    settings: dict[str, Any] = {"limit": 4, "batch": 2, "max_new_tokens": 4}
    found = [
        rqat.evaluate(quantized, "arith", **settings),
        rqat.evaluate(tmp_path / "saved", "arith", **settings),
        rqat.evaluate(quantized.model, "arith", tokenizer=quantized.tokenizer, **settings),
    ]
    assert quantized.model.training
    texts = [[sample["completion"] for sample in evaluation.samples] for evaluation in found]
    assert texts[0] == texts[1] == texts[2]
    assert found[0].results["accuracy"] == found[1].results["accuracy"]


def test_comparing_with_the_model_before_quantization(folder: Path, tmp_path: Path) -> None:
    quantized = rqat.quantize(folder, method="rtn", scheme="w3g64", device="cpu")
    settings: dict[str, Any] = {"rows": ["arith"], "limit": 2}
    found = rqat.evaluate(quantized, "kl", **settings).results["figures"]
    rqat.save(quantized, tmp_path / "saved")
    assert found == rqat.evaluate(tmp_path / "saved", "kl", original=folder, **settings).results["figures"]
    assert found["kl"] > 0
    same = rqat.evaluate(quantized, "kl", original=quantized.model, **settings).results
    assert (same["figures"]["kl"], same["n"]) == (0, 2)
    with pytest.raises(rqat.RqatError, match=r"nobody knows which that is\. Pass original="):
        rqat.evaluate(quantized.model, "kl", tokenizer=quantized.tokenizer, **settings)


def test_mistakes_are_told_in_one_line(quantized: rqat.QuantizedModel, folder: Path, tmp_path: Path) -> None:
    def refused(error: type[rqat.RqatError], says: str, call: Any, *arguments: Any, **keywords: Any) -> None:
        with pytest.raises(error, match=says) as found:
            call(*arguments, **keywords)
        assert found.value.hint or error in (rqat.UnknownName, rqat.RecipeError)

    refused(rqat.UnknownName, "'gtpq'.*gptq", rqat.quantize, folder, method="gtpq")
    refused(rqat.RecipeError, "dampp", rqat.quantize, folder, method="gptq", calibration="arith", dampp=1)
    refused(rqat.RecipeError, "needs calibration", rqat.quantize, folder, method="gptq")
    refused(rqat.RqatError, "'w2x' is not a scheme", rqat.quantize, folder, scheme="w2x", method="rtn")
    refused(rqat.ModelError, "without its tokenizer", rqat.quantize, tiny_model(), method="rtn")
    refused(rqat.DataError, "were asked for", rqat.quantize, folder, calibration={"rows": TEXTS, "samples": 99})
    refused(rqat.RunError, "is not empty", rqat.save, quantized, folder)
    refused(rqat.RunError, "is not empty", rqat.export, quantized, folder)
    refused(rqat.UnknownName, "'ggptq'", rqat.export, quantized, tmp_path / "x", "ggptq")
    refused(rqat.ModelError, "is not an rqat checkpoint", rqat.load, folder)
    refused(rqat.UnknownName, "'ariht'", rqat.evaluate, quantized, "ariht")
    refused(rqat.UnknownName, "no_such_task", rqat.evaluate, quantized, "lm-eval:no_such_task")
    refused(rqat.RecipeError, "tempature", rqat.evaluate, quantized, "lm-eval:gsm8k", tempature=1)
    words = tiny_tokenizer()
    refused(rqat.RqatError, "None is not a scheme", rqat.quantize, folder, method="rtn", scheme=None)
    for method in ([], 3, [rqat.Quantizer]):
        refused(rqat.RecipeError, "names no quantizer", rqat.quantize, folder, method=method)
    refused(rqat.RecipeError, "5 is neither rows nor a source", rqat.quantize, folder, calibration=5)
    refused(rqat.DataError, "row 1 is 2, neither", rqat.quantize, folder, calibration=["a", 2])
    refused(rqat.ModelError, "is quantized already", rqat.quantize, quantized, method="rtn")
    refused(rqat.ModelError, "a Linear is not a model", rqat.quantize, torch.nn.Linear(2, 2), words, method="rtn")
    refused(rqat.ModelError, "no device 'tpu'", rqat.quantize, folder, method="rtn", device="tpu")
    refused(rqat.ModelError, "rqat.save takes what", rqat.save, quantized.model, tmp_path / "x")
    refused(rqat.ModelError, "rqat.export takes what", rqat.export, quantized.model, tmp_path / "x")
    for rates in ({"lr": "1e-4"}, {"lr": -1.0}, {"lr": 1e-4, "scale_lr": float("nan")}):
        refused(rqat.RqatError, "is not a learning rate", quantized.optimizer, **rates)
    refused(rqat.RqatError, "'adamm' is not a class of optimizers", quantized.optimizer, lr=1e-4, inner="adamm")
    refused(rqat.RqatError, "not a QuantizedModel", rqat.QuantizedOptimizer, quantized, quantized.layers, lr=1e-4)
    odd = rqat.quantize(save_tiny(tmp_path / "odd", hidden=96), method="rtn", scheme="w4-row", device="cpu")
    refused(rqat.ModelError, "multiples of 32", rqat.export, odd, tmp_path / "x", "gptq")
    with torch.no_grad():
        quantized.model.get_parameter("model.layers.0.mlp.up_proj.weight").add_(0.01)
    refused(rqat.RqatError, "not what its codes decode to", rqat.save, quantized, tmp_path / "x")
    assert not (tmp_path / "x").exists()
