"""Pre-flight: every finding, each with a plan that has it; and a good plan that has none."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rqat import capacity, lighter, pipeline
from rqat.capacity import estimate
from rqat.errors import ModelError, RunError
from rqat.estimate import LIBRARIES_BYTES, Sizes
from rqat.figures import size
from rqat.grids import bits_per_weight
from rqat.job import Job
from rqat.lighter import MARGIN, advice
from rqat.model.config import read_config
from rqat.plan import Plan, build_plan
from rqat.preflight import Finding, preflight, read_data
from rqat.recipe import built_recipe, load_recipe
from rqat.registry import Registry
from rqat.storage import write_json
from tests.plugin_maker import write_plugin
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def plan_of(registry: Registry, model: Path | str, *overrides: str, **changes: Any) -> Plan:
    data: dict[str, Any] = {
        "name": "whole",
        "model": str(model),
        "calibration": {"source": "arith", "tokens": 64},
        "quantize": "gptq",
        "train": [{"objective": "kd", "data": "arith", "steps": 60, "max_tokens": 128}],
        "evaluate": ["arith"],
    }
    return build_plan(built_recipe({**data, **changes}, {}, overrides), registry)


def found(plan: Plan, level: str = "", **options: Any) -> list[str]:
    return [f"{f.text} {f.hint}" for f in preflight(plan, **options) if level in ("", f.level)]


def only(texts: list[str], *parts: str) -> None:
    """There is one finding, and it holds all `parts`."""
    assert len(texts) == 1, texts
    for part in parts:
        assert part in texts[0]


def test_a_good_plan_has_notes_only(registry: Registry, model: Path, tmp_path: Path):
    findings = preflight(plan_of(registry, model), folder=tmp_path / "run")
    assert {finding.level for finding in findings} == {"note"}
    assert any("lm_head shares the embedding's weight" in finding.text for finding in findings)
    assert any("of memory at 03-train-kd" in finding.text for finding in findings)


def test_all_problems_come_at_once_errors_first(registry: Registry, model: Path):
    plan = plan_of(
        registry, model, "train.0.micro_batch=3", "train.0.schedule=cosin", "scheme=w2g96", "calibration.tokens=999"
    )
    findings = preflight(plan)
    assert [finding.level for finding in findings][:4] == ["error"] * 4
    assert findings == sorted(findings, key=lambda f: ("error", "warning", "note").index(f.level))


def test_layers_that_do_not_divide_are_all_named(registry: Registry, model: Path):
    texts = found(plan_of(registry, model, "scheme=w2g96"), "error")
    only(
        texts,
        "--set scheme: 14 layers",
        "model.layers.0.self_attn.q_proj (128, 128)",
        "model.layers.1.mlp.down_proj (128, 256)",
    )
    assert "indivisible: skip" in texts[0]


def test_layers_left_out_are_noted(registry: Registry, model: Path):
    texts = found(plan_of(registry, model, "quantize.skip=['*.down_proj']"), "note")
    assert any("02-quantize-gptq: 2 linear layers stay" in text and "layers.1.mlp.down_proj" in text for text in texts)


def test_a_quantized_model_is_refused(registry: Registry, model: Path, tmp_path: Path):
    copied = tmp_path / "quantized"
    shutil.copytree(model, copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    only(found(plan_of(registry, copied), "error"), "model: ", "is quantized already (gptq)")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_of_the_model(registry: Registry, model: Path, tmp_path: Path, missing: str):
    copied = tmp_path / "incomplete"
    shutil.copytree(model, copied)
    (copied / missing).unlink()
    assert any(missing in text or "no tokenizer" in text for text in found(plan_of(registry, copied), "error"))


@pytest.mark.parametrize("path", ["./nowhere", "builtin:tiny-reasonre", "hub/name-that-is-not-cached"])
def test_a_model_that_is_not_there(registry: Registry, path: str):
    only(found(plan_of(registry, path), "error", offline=True), "model: ")


def test_sequences_longer_than_the_context(registry: Registry, model: Path):
    plan = plan_of(registry, model, "calibration.tokens=600", "train.0.max_tokens=700", "evaluate.0.max_new_tokens=800")
    errors = found(plan, "error")
    assert [text.split(":")[0] for text in errors] == ["--set calibration.tokens", "--set train.0.max_tokens"]
    assert all("context is 512. Use at most 512." in text for text in errors)
    only(found(plan, "warning"), "evaluate.0", "max_new_tokens is 800")


def test_missing_data_files(registry: Registry, model: Path):
    parts = [{"source": "arith"}, {"source": "text", "path": "no/such.txt"}]
    plan = plan_of(
        registry, model, calibration={"source": "mix", "parts": parts}, evaluate=[{"task": "math500", "data": "x.y"}]
    )
    errors = found(plan, "error")
    assert "calibration: text.path: there is no file 'no/such.txt'." in errors[0]
    assert "evaluate.0: math500.data: there is no file 'x.y'." in errors[1]
    assert len(errors) == 2


def test_a_pipe_which_would_be_empty_when_it_is_read_again(registry: Registry, model: Path, tmp_path: Path):
    os.mkfifo(tmp_path / "rows.jsonl")
    plan = plan_of(registry, model, calibration={"source": "jsonl", "path": str(tmp_path / "rows.jsonl")})
    only(found(plan, "error"), f"calibration: jsonl.path: '{tmp_path}/rows.jsonl' is a pipe or a device, which can be")


def test_lists_inside_the_parts_of_a_mixture_are_gone_through(registry: Registry, model: Path, tmp_path: Path):
    """What a plugin keeps as it is written has no class whose fields could be asked for."""
    path = tmp_path / "mixed.yaml"
    path.write_text(
        f"name: mixed\nmodel: {model}\nscheme: w2g64\nquantize: rtn\nexport: null\ntrain:\n"
        "  - {objective: kd, steps: 2, batch: 4, max_tokens: 128, data: {source: mix, parts: [arith, "
        "{source: traces, prompts: [{source: arith}], keep: [finished, correct], task: arith}]}}\n"
    )
    assert not found(build_plan(load_recipe(path), registry), "error")


def test_domains_that_differ(registry: Registry, model: Path, tmp_path: Path):
    (tmp_path / "t.txt").write_text("text\n")
    text = {"source": "text", "path": str(tmp_path / "t.txt")}
    only(found(plan_of(registry, model, calibration=text), "warning"), "calibration: text, kd: math, arith: math")
    parts = [{"source": "arith", "weight": 0.8}, {**text, "weight": 0.2}]
    assert not found(plan_of(registry, model, calibration={"source": "mix", "parts": parts}), "warning")


def test_a_file_that_is_read_by_a_part_of_a_part_is_told_once_and_where(registry: Registry, model: Path):
    plan = plan_of(registry, model, "train.0.watch={task: kl, data: gone.jsonl}")
    only(found(plan, "error"), "--set train.0.watch: kl.data: there is no file 'gone.jsonl'.")


def test_reading_the_test_split(registry: Registry, model: Path):
    only(found(plan_of(registry, model, "train.0.data.split=test"), "warning"), "train.0.data.split", "test split")


def test_batches_schedules_and_optimizers(registry: Registry, model: Path):
    plan = plan_of(registry, model, "train.0.micro_batch=5", "train.0.schedule=cosin", "train.0.optimizer=adamw")
    texts = "\n".join(found(plan, "error"))
    assert "micro-batches of 5. Use one of 1, 2, 4, 8, 16." in texts
    assert "train.0.schedule: 'cosin' is not known. Did you mean 'cosine'?" in texts
    assert "train.0.optimizer: 'adamw' is not known. Did you mean 'AdamW'?" in texts


def test_every_known_schedule_and_optimizer_can_be_built():
    import torch

    from rqat.optimizers import OPTIMIZERS, SCHEDULES
    from rqat.stages.train import TrainKeys
    from rqat.train.schedule import build_schedule, optimizer_class

    inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in SCHEDULES:
        keys = TrainKeys.model_validate({"objective": "kd", "data": {"source": "arith"}, "steps": 4, "schedule": name})
        assert build_schedule(inner, keys)
    for name in OPTIMIZERS:
        assert optimizer_class(name)


def test_schemes_an_exporter_cannot_write(registry: Registry, model: Path):
    plan = plan_of(registry, model, "scheme=w3g40", "export=gptq")
    assert any("export.format: 'gptq' cannot write w3g40" in text for text in found(plan, "error"))
    for scheme in ("w3-row-sym", "w2g128"):
        assert not any(
            "gptq" in text for text in found(plan_of(registry, model, f"scheme={scheme}", "export=gptq"), "error")
        )


def test_layers_that_a_format_cannot_hold(registry: Registry, tmp_path: Path):
    """The rows of a word are told with the first layer that does not fill them, and how many more there are."""
    odd = save_tiny(tmp_path / "odd", hidden=96)
    for format_name, refused in (("gptq", True), ("compressed-tensors", False)):
        plan = plan_of(registry, odd, "scheme=w4-row", f"export={format_name}")
        texts = [text for text in found(plan, "error") if "gptq format takes multiples of 32" in text]
        assert bool(texts) is refused
        assert not refused or ("k_proj has 48 output and 96 input features, as do 3 more layers" in texts[0])


def test_a_full_disk(registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: usage)
    only(found(plan_of(registry, model), "error", folder=tmp_path / "a" / "b"), "needs about", "0 B are free")


def test_what_lies_there_already_counts(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Room for what is left, and no more: with steps finished, one begun, and all thrown away."""
    plan = plan_of(registry, model)
    config = read_config(plan.model)
    sizes = {one.step: one for one in estimate(plan, config)}

    def refused(free: int, *, fresh: bool = False) -> bool:
        usage = namedtuple("usage", "total used free")(1 << 40, 0, free)
        monkeypatch.setattr(capacity.shutil, "disk_usage", lambda folder: usage)
        findings = preflight(plan, folder=tmp_path, fresh=fresh)
        return any("free there" in one.text for one in findings if one.level == "error")

    whole = sum(one.disk_bytes for one in sizes.values())
    whole += max(one.disk_peak_bytes - one.disk_bytes for one in sizes.values())
    assert refused(whole - 1)
    assert not refused(whole)
    train = next(step for step in plan.steps if step.stage == "train")
    for step in plan.steps[: plan.steps.index(train)]:
        (tmp_path / step.name).mkdir()
        write_json(tmp_path / step.name / "manifest.json", {"fingerprint": plan.fingerprint(step), "files": {}})
    after = [sizes[step.name] for step in plan.steps[plan.steps.index(train) :]]
    left = sum(one.disk_bytes for one in after) + max(one.disk_peak_bytes - one.disk_bytes for one in after)
    assert left < whole
    assert refused(left - 1)
    assert not refused(left)
    partial = tmp_path / f"{train.name}.partial"
    (partial / ".resume").mkdir(parents=True)
    write_json(partial / ".step.json", {"fingerprint": plan.fingerprint(train)})
    (partial / ".resume" / "state").write_bytes(bytes(5000))
    assert not refused(left - 5000)
    assert refused(left - 6000)
    assert not refused(whole - 5000, fresh=True)


def test_a_training_checkpoint_is_what_the_optimizer_holds(registry: Registry, model: Path):
    """Twice latents and moments: the last one, and the one being written; half a moment less is half a checkpoint."""
    config = read_config(plan_of(registry, model).model)

    def meanwhile(*overrides: str) -> int:
        plan = plan_of(registry, model, *overrides)
        return max(one.disk_peak_bytes - one.disk_bytes for one in estimate(plan, config) if "train" in one.step)

    quantized = sum(out * width for out, width in config.linears.values())
    frozen = meanwhile("train.0.scale_lr=null")
    assert frozen == pytest.approx(2 * 3 * 4 * quantized, rel=0.1)
    assert meanwhile("train.0.scale_lr=null", "train.0.optimizer=SGD") == pytest.approx(frozen / 3, rel=0.1)
    assert meanwhile() > frozen


def test_scales_alone_take_less_and_leave_some_keys_without_effect(registry: Registry, model: Path):
    config = read_config(plan_of(registry, model).model)

    def most(*overrides: str) -> int:
        plan = plan_of(registry, model, *overrides)
        return max(one.memory_bytes for one in estimate(plan, config) if "train" in one.step)

    quantized = sum(out * width for out, width in config.linears.values())
    assert most() - most("train.0.lr=null") > 2 * 11 * quantized  # 12 bytes a weight less one for its code, twice
    told = found(plan_of(registry, model, "train.0.lr=null", "train.0.latent_reach=0.2"), "warning")
    only(told, "train.0.latent_reach", "lr is null, so codes stay: this has no effect. Leave it out.")
    told = found(plan_of(registry, model, "train.0.lr=null", "train.0.scale_lr=null"), "error")
    only(told, "train.0.lr", "nothing is trained: every rate is null.")


@pytest.mark.parametrize("scheme", ["w3g128-sym", "w2g128-seq"])
def test_zero_points_that_the_grid_fixes_are_not_trained(registry: Registry, model: Path, scheme: str):
    """Behind a quantizer that took hours a run would say that nothing is trained, or nothing at all."""
    asked = (f"scheme={scheme}", "train.0.zero_lr=0.01", "export=null")
    only(
        found(plan_of(registry, model, *asked), "warning"), "--set train.0.zero_lr: the scheme's zero points are fixed"
    )
    alone = plan_of(registry, model, *asked, "train.0.lr=null", "train.0.scale_lr=null")
    only(found(alone, "error"), "train.0.lr: nothing is trained: every rate is null but zero_lr")
    mixed = plan_of(registry, model, f"scheme={{default: {scheme}, '*.down_proj': w4g128}}", *asked[1:])
    assert not found(mixed, "warning")


def test_rprop_does_not_see_its_rate_behind_a_warm_up(registry: Registry, model: Path):
    asked = ("train.0.optimizer=Rprop", "train.0.lr=1e-3")
    steps = plan_of(registry, model, "train.0.steps=40", *asked)
    only(found(steps, "warning"), "train.0.warmup: Rprop takes its rate from the first step", "at 1/2")
    assert not found(plan_of(registry, model, *asked, "train.0.warmup=0"), "warning")
    assert not found(plan_of(registry, model, *asked, "train.0.steps=20"), "warning")  # the first step has all of it


def test_a_constant_schedule_has_no_warm_up(registry: Registry, model: Path):
    asked = ("train.0.schedule=constant", "train.0.warmup=0.2")
    only(found(plan_of(registry, model, *asked), "warning"), "train.0.warmup: a constant schedule has none")
    assert not found(plan_of(registry, model, *asked[:1]), "warning")


def test_too_little_memory(registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1000)
    helps = ("train.0.micro_batch=8 saves about ", "train.0.max_tokens=64 saves about ", "max_tokens=64 saves")
    on_cpu = found(plan_of(registry, model), "warning")
    only(on_cpu, "of memory at 03-train-kd", "This machine has 1", *helps)
    assert "gradient_checkpointing=true saves about " in on_cpu[0]
    on_gpu = found(plan_of(registry, model), "warning", device="cuda")
    only(on_gpu, "The GPU has", *helps)
    assert "gradient_checkpointing" not in on_gpu[0]  # which is on there


def test_a_micro_batch_that_fits_is_named(registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of far too much is still too much."""
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 2 << 30)
    told = next(text for text in found(plan_of(registry, model, "train.0.batch=65536"), "warning") if "memory" in text)
    micro_batch = int(re.findall(r"train\.0\.micro_batch=(\d+) saves", told)[0])
    assert micro_batch < 65536 / 2
    left = found(plan_of(registry, model, "train.0.batch=65536", f"train.0.micro_batch={micro_batch}"), "warning")
    assert not [text for text in left if "of memory at" in text]


def test_traces_are_written_in_smaller_batches(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1 << 30)
    traces = 'train.0.data={"source": "traces", "prompts": "arith", "batch": 4096}'
    told = next(text for text in found(plan_of(registry, model, traces), "warning") if "memory" in text)
    assert "at 03-produce-traces" in told
    assert "train.0.data.batch=2048 saves about" in told


def test_a_step_that_cannot_fit_is_not_begun(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system would end this process, or another one, in the midst of it."""
    plan = plan_of(registry, model)
    train = next(step for step in plan.steps if step.stage == "train")
    needed = lighter.needed_bytes(train, plan, "cpu")
    monkeypatch.setattr(lighter, "available_bytes", lambda device: needed // 5)
    with pytest.raises(
        RunError, match=r"out of memory on cpu: it takes about .* by the estimate, and .* are free"
    ) as why:
        pipeline.run_stage(Job(plan, tmp_path / "run", registry), train)
    assert "train.0.micro_batch=" in why.value.hint
    monkeypatch.setattr(lighter, "available_bytes", lambda device: needed // 3)
    lighter.refuse_hopeless(needed, "cpu")  # an estimate may be wrong, and others may give memory back


def test_processes_of_one_machine_share_its_memory(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU the sum is told and compared with what is free; every GPU is one process's alone."""
    plan = plan_of(registry, model, "train.0.shard=false")
    config = read_config(plan.model)

    def train(device: str = "cpu", **many: int) -> Any:
        found = estimate(plan, config, device, **many)
        assert {one.sharing for one in found if "quantize" in one.step} == {1}
        return next(one for one in found if one.step == "03-train-kd")

    each = train(processes=4)
    assert each.together_bytes == 4 * each.memory_bytes
    assert train(processes=4, machines=2).together_bytes == 2 * each.memory_bytes
    assert train("cuda", processes=4).together_bytes == train("cuda", processes=4).memory_bytes
    monkeypatch.setattr(capacity, "free_bytes", lambda device: 2 * each.memory_bytes)
    [text] = [one for one in found(plan, processes=4) if "memory at 03-train-kd" in one]
    assert (
        f"about {size(4 * each.memory_bytes)} of memory at 03-train-kd, {size(each.memory_bytes)} in each of 4" in text
    )
    assert f"This machine has {size(2 * each.memory_bytes)} of memory free." in text
    assert f"--processes 1 takes about {size(train().memory_bytes)}" in text
    sizes = Sizes(plan.model, config, plan.scheme, bits_per_weight, "cpu", processes=4)
    step = plan.step("03-train-kd")
    alone, four = (advice(step, plan, sizes, sharing).split(" saves about ")[1] for sharing in (1, 4))
    assert alone != four
    assert four in text
    assert not [one for one in found(plan, "warning", processes=4, machines=2) if "memory" in one]
    assert not [one for one in found(plan, "warning", processes=4, device="cuda") if "memory" in one]


def test_what_is_saved_by_a_key_is_what_the_estimate_says(registry: Registry, model: Path) -> None:
    plan = plan_of(registry, model)
    config = read_config(plan.model)
    step = next(step for step in plan.steps if step.stage == "train")
    said = advice(step, plan, Sizes(plan.model, config, plan.scheme, bits_per_weight, "cpu"))
    before = {one.step: one.memory_bytes for one in estimate(plan, config)}
    for key in ("micro_batch=8", "gradient_checkpointing=true", "max_tokens=64"):
        after = {one.step: one.memory_bytes for one in estimate(plan_of(registry, model, f"train.0.{key}"), config)}
        assert f"train.0.{key} saves about {size(before[step.name] - after[step.name])}" in said


OOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nOf the allocated memory"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError(OOM), "out of memory on cuda: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), "CUDA error: out of memory Compile"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "ALLOC_FAILED"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPUAllocator"),
        (MemoryError(), "out of memory on cuda: MemoryError"),
        (
            ModelError("Out of memory while generating 512 completions.", hint="Use fewer."),
            "generating 512 completions",
        ),
    ],
)
def test_every_way_to_run_out_of_memory_is_one_line_with_the_keys_that_help(
    registry: Registry, model: Path, error: Exception, says: str
) -> None:
    if isinstance(error, ModelError):
        assert not lighter.is_out_of_memory(error)  # but for what led to it
        error.__cause__ = torch.OutOfMemoryError(OOM)
    assert lighter.is_out_of_memory(error)
    plan = plan_of(registry, model, evaluate=[{"task": "arith", "batch": 8}])
    train = next(step for step in plan.steps if step.stage == "train")
    told = lighter.ran_out(train, plan, "cuda", error)
    assert f"{train.name}: out of memory on cuda: " in told.message
    assert says in told.message
    assert "\n" not in f"{told.message}{told.hint}"
    assert "train.0.micro_batch=8 saves about" in told.hint
    assert "With another micro_batch or max_tokens" not in told.hint  # which makes it another training
    assert "With another micro_batch the same command goes on from what is saved." in told.hint
    asked = next(step for step in plan.steps if step.stage == "evaluate")
    told = lighter.ran_out(asked, plan, "cpu", error)
    assert "evaluate.0.batch=4 saves about" in told.hint
    assert "goes on" not in told.hint


def test_a_device_that_others_have_filled_is_told_before_the_work_too(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(device: str) -> None:
        raise RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'")

    plan = plan_of(registry, model)
    monkeypatch.setattr(pipeline, "give_back", full)
    with pytest.raises(RunError, match="out of memory on cuda: CUDA error: out of memory Search"):
        pipeline.run_stage(Job(plan, tmp_path / "run", registry, device="cuda"), plan.steps[-1])


def test_other_errors_are_no_want_of_memory() -> None:
    for error in (RuntimeError("device-side assert"), ValueError("out of memory"), RunError("out of memory")):
        assert not lighter.is_out_of_memory(error)


def test_the_free_memory_of_the_smallest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lighter, "QUERY", ("printf", "81000\\n40000\\n"))
    assert lighter.free_bytes("cuda") == 40000 << 20
    monkeypatch.setattr(lighter, "QUERY", ("no-such-command",))
    assert lighter.free_bytes("cuda") is None
    assert (lighter.free_bytes("cpu") or 0) > 1 << 20


def test_estimates_grow_with_what_they_depend_on(registry: Registry, model: Path):
    config = read_config(plan_of(registry, model).model)

    def memory(*overrides: str, device: str = "cpu") -> int:
        plan = plan_of(registry, model, *overrides)
        return max(e.memory_bytes for e in estimate(plan, config, device) if "train" in e.step) - LIBRARIES_BYTES

    assert memory("train.0.micro_batch=4") < memory("train.0.micro_batch=8") < memory()
    assert memory("train.0.gradient_checkpointing=true") < memory("train.0.gradient_checkpointing=false") == memory()
    assert memory("train.0.max_tokens=64") < memory()
    assert memory(device="cuda") < memory()
    assert memory("train.0.objective=sft") < memory()
    for one in estimate(plan_of(registry, model), config):
        assert one.memory_bytes > LIBRARIES_BYTES or "calibrate" in one.step
        assert one.disk_peak_bytes >= one.disk_bytes >= 0


def test_quantizing_takes_as_much_memory_however_many_blocks_there_are(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (save_tiny(tmp_path / str(blocks), layers=blocks) for blocks in (2, 9))

    def memory(folder: Path, method: Any) -> int:
        plan = plan_of(registry, folder, quantize=method)
        return next(e.memory_bytes for e in estimate(plan, read_config(plan.model)) if "quantize" in e.step)

    monkeypatch.setattr("rqat.stages.quantize.SMALL", 0)
    saliency = {"method": "gptq", "token_weights": "saliency"}
    for method, grows, told in (
        ("rtn", False, "weights are read and written block by block. "),
        ({"method": "gptq", "asymmetric": 0.2}, False, "weights are read and written block by block. "),
        (saliency, True, "the whole model is in memory, for token_weights. "),
    ):
        assert (memory(few, method) < memory(many, method)) == grows
        assert any(told in text for text in found(plan_of(registry, few, quantize=method), "note"))


def test_a_teacher_is_looked_at_before_any_work(
    registry: Registry, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def texts(level: str) -> list[str]:
        return found(plan_of(registry, model, f"train.0.teacher={teacher}"), level)

    teacher = save_tiny(tmp_path / "teacher", 1, vocab=160, context=96)
    only(texts("error"), "train.0.teacher", "max_tokens is 128", "context is 96", "Use at most 96")
    teacher = save_tiny(tmp_path / "teacher", 1, vocab=160)
    assert texts("error") == texts("warning") == []

    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    monkeypatch.setattr("rqat.model.extras.find_spec", lambda name: None)
    only(texts("error"), "train.0.teacher", "is a gptq checkpoint", "gptqmodel and optimum, not installed here")
    monkeypatch.setattr("rqat.model.extras.find_spec", lambda name: name)
    assert texts("error") == []
    only(texts("warning"), "train.0.teacher", "is quantized itself (gptq)", "16 or 32 bits")
    (teacher / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    only(texts("error"), "train.0.teacher", "past the model's vocabulary", "ends at 63")
    (teacher / "config.json").write_text(json.dumps(config))
    (teacher / "quantized.safetensors").touch()
    only(texts("error"), "train.0.teacher", "is a step of a run", "exported model")
    (teacher / "quantized.safetensors").unlink()
    (teacher / "tokenizer.json").write_text("{")
    only(texts("error"), "train.0.teacher", "tokenizer.json' is damaged")


@pytest.mark.parametrize("where", ["train.0.teacher", "evaluate.0.original"])
def test_models_that_are_only_read_are_looked_at_as_well(registry: Registry, model: Path, tmp_path: Path, where: str):
    def texts(level: str) -> list[str]:
        text = str(tmp_path / "text.txt")
        task = {"task": "kl", "rows": [{"source": "text", "path": text}]}
        return found(plan_of(registry, model, f"{where}={other}", evaluate=[task]), level)

    (tmp_path / "text.txt").write_text("some text")
    other = save_tiny(tmp_path / "other", 1)
    assert texts("error") == texts("warning") == []
    tensors = load_file(other / "model.safetensors")
    save_file(tensors | {"v_head.weight": torch.ones(1)}, other / "model.safetensors")
    only(texts("warning"), where, "holds v_head.weight", "they are left out.")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(128)}, other / "model.safetensors")
    only(texts("error"), where, "q_proj.bias within its blocks", "it is another model")
    save_file(tensors, other / "model.safetensors")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForSequenceClassification"]}))
    only(texts("error"), where, "which writes no text")
    (other / "config.json").write_text(json.dumps(config))
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["new"] = 127
    (other / "tokenizer.json").write_text(json.dumps(words))
    called = "teacher and student" if where.endswith("teacher") else "original and model"
    only(texts("error"), where, f"{called} have different vocabularies", "token 'new'")


def test_a_teacher_counts_in_the_memory(registry: Registry, model: Path, tmp_path: Path):
    config, teacher = read_config(plan_of(registry, model).model), save_tiny(tmp_path / "large", layers=6)
    sizes = []
    for overrides in ((), (f"train.0.teacher={teacher}",)):
        plan = plan_of(registry, model, *overrides)
        sizes += [one.memory_bytes for one in estimate(plan, config) if "train" in one.step]
    larger = read_config(plan.recipe.train[0].teacher or plan.model).parameters - config.parameters
    assert sizes[1] - sizes[0] == 4 * larger > 0


def test_reading_data_finds_what_is_missing(registry: Registry, model: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('{"answer": "a"}\n')
    bad = {"source": "jsonl", "path": str(tmp_path / "bad.jsonl")}
    plan = plan_of(registry, model, calibration=bad)
    (finding,) = [each for each in read_data(plan, registry) if each.level == "error"]
    assert finding.level == "error"
    assert finding.text.startswith("calibration: ")
    assert "bad.jsonl" in finding.text
    (dropped,) = read_data(plan_of(registry, model), registry)
    assert dropped.level == "warning"
    assert "852 of 960 rows are longer than max_tokens=128" in dropped.text
    assert read_data(plan_of(registry, model, "train.0.max_tokens=500"), registry) == []


def test_a_class_that_does_not_fit_is_told_before_any_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of a later step, too: the model would have been quantized by then."""
    code = """
import rqat

class Late(rqat.Objective):
    def build_trainer(self, training, teacher): ...

@rqat.hookimpl
def register_objectives(register):
    register("late", load=":Late", summary="a test")
"""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = write_plugin(tmp_path, "acme-late", code)
    registry = Registry.discover()
    train = [{"objective": "late", "data": "arith", "steps": 60, "max_tokens": 500}]
    plan = plan_of(registry, model, train=train)
    (finding,) = [each for each in read_data(plan, registry) if each.level == "error"]
    assert finding.text.startswith("train.0: objective 'late'")
    assert "'Late.build_trainer' takes (self, training, teacher)" in finding.text
    done = [step.name for step in plan.steps if "train" in step.name]
    assert not [each for each in read_data(plan, registry, done=done) if each.level == "error"]
    monkeypatch.undo()
    sys.modules.pop(module)
    Registry.discover()


def test_a_finding_reads_as_one_line():
    assert str(Finding("error", "this is wrong.", "Do that.")) == "error: this is wrong. Do that."


def test_micro_batch_auto_is_what_fits_and_changes_no_fingerprint(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, auto = (plan_of(registry, model, f"train.0.micro_batch={value}") for value in ("null", "auto"))
    config = read_config(plan.model)
    assert [plan.fingerprint(step) for step in plan.steps] == [auto.fingerprint(step) for step in auto.steps]
    step = next(step for step in auto.steps if step.stage == "train")

    def chosen() -> tuple[int, int]:
        (one,) = (one for one in estimate(auto, config) if one.step == step.name)
        return one.chosen["micro_batch"], one.memory_bytes

    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1 << 50)
    whole, most = chosen()
    assert whole == step.settings.batch  # type: ignore[union-attr]
    assert most == next(one.memory_bytes for one in estimate(plan, config) if one.step == step.name)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: int(MARGIN * (most - LIBRARIES_BYTES)) - 2)
    assert chosen()[0] == whole // 2
    for nothing in (0, None):
        monkeypatch.setattr(capacity, "free_bytes", lambda device, nothing=nothing: nothing)
        assert chosen()[0] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": {"method": "rtn", "skip": ["*.q_proj"]}},
        {"quantize": {"method": "rtn", "skip": ["*.0.mlp.up_proj"]}},
        {"quantize": "rtn", "scheme": {"default": "w4g128", "*.k_proj": "w3g128"}},
    ],
)
def test_parts_of_a_layer_that_servers_fuse_are_told(registry: Registry, model: Path, changes: dict[str, Any]):
    texts = found(plan_of(registry, model, **{"scheme": "w4g128", "train": []} | changes), "warning")
    only(texts, "export", "vllm computes as one layer, and refuses where their schemes differ", "_proj", "one scheme")


def test_layers_left_out_as_a_whole_are_no_matter(registry: Registry, model: Path):
    for skip in ("*.o_proj", "*.[qkv]_proj"):
        changes = {"quantize": {"method": "rtn", "skip": [skip]}, "train": [], "scheme": "w4g128"}
        assert found(plan_of(registry, model, **changes), "warning") == []


def test_what_servers_were_seen_to_do_is_told(registry: Registry, model: Path):
    notes = found(plan_of(registry, model, scheme="w2g128"), "note")
    (line,) = [text for text in notes if "was seen to load in" in text]
    assert "'compressed-tensors' with w2g128 was seen to load in transformers" in line
    assert "Refused by vllm" in line


def test_a_format_that_no_server_was_seen_to_load_is_warned_of(registry: Registry, model: Path, monkeypatch):
    from rqat import servers

    monkeypatch.setattr(
        servers, "trials", lambda: (servers.Trial("vllm", "1", "gptq", 2, False, 128, False, words="no"),)
    )
    texts = found(plan_of(registry, model, scheme="w2g128", export="gptq"), "warning")
    only(texts, "export", "'gptq' with w2g128 was seen to load in no server. Refused by vllm 1: no", "bf16")
    texts = found(plan_of(registry, model, scheme="w3g128", export="gptq"), "warning")
    only(texts, "'gptq' with w3g128 was seen to load in no server. It was not tried")


def test_shard_auto_splits_where_a_copy_does_not_fit(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {value: plan_of(registry, model, f"train.0.shard={value}") for value in ("auto", "true", "false")}
    config = read_config(plans["auto"].model)
    assert len({tuple(plan.fingerprint(step) for step in plan.steps) for plan in plans.values()}) == 1

    def needs(value: str, processes: int = 2) -> Any:
        found = estimate(plans[value], config, "cuda", processes=processes)
        return next(one for one in found if one.step == "03-train-kd")

    monkeypatch.setattr(capacity, "free_bytes", lambda device: 1 << 50)
    copy, part = needs("false"), needs("true")
    assert part.memory_bytes < copy.memory_bytes
    assert needs("auto").chosen == {"shard": False}
    assert needs("auto", processes=1).chosen == {}
    assert needs("true", processes=1).memory_bytes == needs("false", processes=1).memory_bytes
    monkeypatch.setattr(capacity, "free_bytes", lambda device: int(MARGIN * (copy.memory_bytes - LIBRARIES_BYTES)) - 2)
    assert needs("auto").chosen == {"shard": True}
    assert needs("auto").memory_bytes == part.memory_bytes
    plans["auto"] = plan_of(registry, model, "train.0.shard=auto", "train.0.optimizer=Adafactor")
    assert needs("auto").chosen == {"shard": False}


def test_what_cannot_be_split_is_said(registry: Registry, model: Path) -> None:
    only(
        found(plan_of(registry, model, "train.0.shard=true", "train.0.optimizer=Adafactor"), "error"),
        "train.0.shard: the model cannot be split: Adafactor trains every layer as one matrix. Leave it out",
    )
    grpo = {"objective": "grpo", "data": "arith", "task": "arith", "steps": 2, "batch": 8, "rollouts": "rqat"}
    assert any(
        "train.0.shard: the model cannot be split: completions come from the engine 'rqat'" in text
        for text in found(plan_of(registry, model, "train.0.shard=true", train=[grpo]), "error")
    )
