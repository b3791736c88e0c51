"""The train stage: what it writes, and that an interrupted run ends with the same bytes as an unbroken one."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from rqat.contracts import Training
from rqat.errors import DataError, NumericsError, PluginError, RqatError, RunError, UnknownName
from rqat.model.checkpoint import load_checkpoint
from rqat.stages.train import run as train
from rqat.storage import read_json_lines, write_json
from rqat.train import saving
from rqat.train.checkpoints import last_complete, step_of
from tests.tiny import tiny_tokenizer
from tests.training import START, Sums, digests, train_step, with_callback, write_start

COMMON: dict[str, Any] = {
    "steps": 8, "batch": 4, "micro_batch": 2, "save_every": 3, "max_tokens": 64,
    "lr": 1e-2, "scale_lr": 1e-3, "zero_lr": 1e-1, "other_lr": 1e-3,
}  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {},
    "kd": {"sft_weight": 0.1},
    "kd of scales": {"lr": None},
    "grpo": {"generations": 2, "max_completion_tokens": 6},
    "grpo of scales": {"generations": 2, "max_completion_tokens": 6, "lr": None, "kd_weight": 1.0},
    "grpo by the engine": {"generations": 2, "max_completion_tokens": 6, "rollouts": "rqat"},
}
"""By the name of the objective, and what else is said of it."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(folder)
    return folder


@pytest.fixture
def root(start: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, to train in."""
    return Path(shutil.copytree(start, tmp_path / "root"))


def options_of(objective: str, **changes: Any) -> dict[str, Any]:
    return {**COMMON, **OBJECTIVES[objective], **changes}


@pytest.fixture(scope="module")
def unbroken(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Work folder and facts of a run without interruption, one per objective."""
    done: dict[str, tuple[Path, dict[str, Any]]] = {}

    def get(objective: str) -> tuple[Path, dict[str, Any]]:
        if objective not in done:
            folder = Path(shutil.copytree(start, tmp_path_factory.mktemp(objective) / "root"))
            job, step = train_step(folder, objective.split()[0], **options_of(objective))
            done[objective] = (job.workdir(step), train.run(job, step))
        return done[objective]

    return get


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "grpo of scales"])
@pytest.mark.parametrize("pad", [None, "<pad>"])
def test_trainers_leave_nothing_of_their_own_in_what_is_exported(objective: str, pad: str | None, root: Path) -> None:
    """They give the tokenizer a pad token, switch the cache off and set end tokens."""
    before = root / "run" / START
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(before)
    (before / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5], "top_p": 0.3, "unheard": 1}))
    job, step = train_step(root, objective.split()[0], **options_of(objective, steps=1))
    train.run(job, step)
    after = job.workdir(step)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        assert json.loads((after / name).read_text()) == json.loads((before / name).read_text()), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_leaves_a_checkpoint_a_log_and_facts(objective: str, start: Path, unbroken: Any) -> None:
    work, facts = unbroken(objective)
    codes = not objective.endswith("of scales")
    assert {path.name for path in work.iterdir()} >= {"quantized.safetensors", "training.jsonl"}
    assert (work / "latents.safetensors").exists() is codes
    before, after = load_checkpoint(start / "run" / START), load_checkpoint(work)
    assert all(layer.scheme == before.layers[name].scheme for name, layer in after.layers.items())
    assert codes is any(not torch.equal(before.layers[name].codes, after.layers[name].codes) for name in before.layers)
    assert torch.equal(before.model.get_input_embeddings().weight, after.model.get_input_embeddings().weight)
    for name, parameter in after.model.named_parameters():
        if name.removesuffix(".weight") not in after.layers:
            assert torch.equal(parameter, parameter.bfloat16().float())
    assert after.model.config.use_cache
    assert after.model.generation_config.to_dict() == before.model.generation_config.to_dict()
    lines = read_json_lines(work / "training.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert facts["steps"] == 8
    assert facts["final_loss"] == lines[-1]["loss"]
    assert facts["tokens"] == lines[-1]["tokens"] > 0
    pairs = [(before.layers[name], after.layers[name]) for name in before.layers]
    for kind, part in (("codes", "codes"), ("scales", "scale"), ("zeros", "zero")):
        other = torch.cat([(getattr(old, part) != getattr(new, part)).flatten() for old, new in pairs])
        assert facts[f"{kind}_changed"] == pytest.approx(other.double().mean().item())
    if objective.startswith("grpo"):
        assert facts["sampler_gap_nats"] < 1e-4
        gap = "sampling/sampling_logp_difference"
        assert all(0 <= line[f"{gap}/mean"] <= line[f"{gap}/p95"] <= line[f"{gap}/max"] < 1e-4 for line in lines)
        assert all(abs(line["sampling/importance_sampling_ratio/mean"] - 1) < 1e-4 for line in lines)
        assert {"reward", "completions/clipped_ratio", "repetition", "frac_reward_zero_std"} <= lines[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "grpo", "grpo by the engine"])
def test_kill_at_any_moment_and_the_same_command_end_with_the_same_bytes(
    objective: str, root: Path, unbroken: Any
) -> None:
    options = options_of(objective)
    name = objective.split()[0]
    job, step = train_step(root, name, **options)
    work = job.workdir(step)
    half_written = job.scratch(step) / "checkpoint-6.partial"
    moments = [
        lambda: len(read_json_lines(work / "training.jsonl")) >= 4,
        half_written.exists,
    ]
    for moment in moments[: 1 if name == "grpo" else 2]:
        command = [sys.executable, "-m", "tests.training", str(root), name, json.dumps(options)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            deadline = time.monotonic() + 120
            while not moment() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()
    train.run(job, step)
    work_unbroken, _ = unbroken(objective)
    assert digests(work) == digests(work_unbroken)
    clocks = {"seconds"}
    mine, theirs = (
        [{k: v for k, v in line.items() if k not in clocks} for line in read_json_lines(w / "training.jsonl")]
        for w in (work, work_unbroken)
    )
    assert mine == theirs


class Stop(TrainerCallback):
    """Breaks off after some steps, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resumes_from_the_last_complete_checkpoint(objective: str, root: Path, unbroken: Any) -> None:
    """Steps 1 to 5, half a checkpoint at 6, so it resumes after 3; then to 7, so it resumes after 6."""
    job, step = train_step(root, objective.split()[0], **options_of(objective))
    for after, kept in ((5, 3), (7, 6)):
        with with_callback(job, step, Stop(after)), pytest.raises(KeyboardInterrupt):
            train.run(job, step)
        assert [path.name for path in job.scratch(step).iterdir()] == [f"checkpoint-{kept}"]
        if kept == 3:
            (job.scratch(step) / "checkpoint-6.partial").mkdir()
            (job.scratch(step) / "checkpoint-6.partial" / "state.json").write_text("cut o")
    facts = train.run(job, step)
    work, unbroken_facts = unbroken(objective)
    assert digests(job.workdir(step)) == digests(work)
    ignored = {"train_seconds"}
    assert {k: v for k, v in facts.items() if k not in ignored} == {
        k: v for k, v in unbroken_facts.items() if k not in ignored
    }


def test_micro_batches_do_not_change_what_is_learned(root: Path) -> None:
    """A true token mean: four rows of different lengths at once, or two and two."""
    losses = []
    for micro in (4, 2):
        job, step = train_step(root, "kd", **options_of("kd", steps=3, micro_batch=micro))
        train.run(job, step)
        losses.append([line["loss"] for line in read_json_lines(job.workdir(step) / "training.jsonl")])
        shutil.rmtree(job.workdir(step))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_another_micro_batch_may_be_used_to_resume(root: Path) -> None:
    """The same rows in every step, whatever part of them passes at once."""
    losses = []
    for micro in (4, 2):
        job, step = train_step(root, "kd", **options_of("kd", steps=6, save_every=3, micro_batch=4))
        with with_callback(job, step, Stop(4)), pytest.raises(KeyboardInterrupt):
            train.run(job, step)
        job, step = train_step(root, "kd", **options_of("kd", steps=6, save_every=3, micro_batch=micro))
        train.run(job, step)
        losses.append([line["loss"] for line in read_json_lines(job.workdir(step) / "training.jsonl")])
        shutil.rmtree(job.workdir(step))
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_checkpointing_changes_no_loss(root: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        job, step = train_step(root, "kd", **options_of("kd", steps=3, gradient_checkpointing=checkpointing))
        train.run(job, step)
        losses.append([line["loss"] for line in read_json_lines(job.workdir(step) / "training.jsonl")])
        shutil.rmtree(job.workdir(step))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_latents_are_carried_to_the_next_train_step(root: Path) -> None:
    """Two steps of one training each leave latents off their grid values; without the file they would start on them."""
    job, step = train_step(root, "kd", **options_of("kd", steps=2))
    train.run(job, step)
    first = job.workdir(step).rename(root / "run" / "02-first")
    results = []
    for carried in (True, False):
        if not carried:
            (first / "latents.safetensors").unlink()
        job, step = train_step(root, "sft", **options_of("sft", steps=1, lr=1e-9))
        step.inputs["start"] = first.name
        train.run(job, step)
        results.append(digests(job.workdir(step)))
        shutil.rmtree(job.workdir(step))
    assert results[0]["quantized.safetensors"] == results[1]["quantized.safetensors"]
    assert results[0]["latents.safetensors"] != results[1]["latents.safetensors"]


def test_latents_that_are_carried_start_off_the_borders(root: Path) -> None:
    """Many end a training next to a border, and would cross it with the first update of the next one."""
    job, step = train_step(root, "kd", **options_of("kd", steps=2))
    train.run(job, step)
    first = job.workdir(step).rename(root / "run" / "02-first")
    farthest = {"before": farthest_latent(first)}
    for reach in (0.4, 0.25):
        job, step = train_step(root, "sft", **options_of("sft", steps=1, lr=1e-9, scale_lr=None, latent_reach=reach))
        step.inputs["start"] = first.name
        train.run(job, step)
        farthest[str(reach)] = farthest_latent(job.workdir(step))
        shutil.rmtree(job.workdir(step))
    assert farthest["before"] > 0.45
    assert farthest["0.4"] == pytest.approx(0.4, abs=1e-3)
    assert farthest["0.25"] == pytest.approx(0.25, abs=1e-3)


def test_latents_outlive_a_training_of_scales_alone(root: Path) -> None:
    job, step = train_step(root, "kd", **options_of("kd", steps=2))
    train.run(job, step)
    first = job.workdir(step).rename(root / "run" / "02-first")
    job, step = train_step(root, "kd", **options_of("kd of scales", steps=2))
    step.inputs["start"] = first.name
    assert train.run(job, step)["latents_from"] == "nowhere: codes stay"
    name = "latents.safetensors"
    assert (job.workdir(step) / name).read_bytes() == (first / name).read_bytes()


def farthest_latent(folder: Path) -> float:
    """How far a latent of a finished train step is from its code's value at most, in steps of the grid."""
    return max(float(offset.abs().max()) for offset in load_file(folder / "latents.safetensors").values())


def test_a_gate_that_says_skip_passes_the_start_through(root: Path) -> None:
    gate = root / "run" / "02-gate-grpo"
    gate.mkdir()
    write_json(gate / "gate.json", {"passed": False, "action": "skip", "why": "0 of 8 completions are correct"})
    job, step = train_step(root, "grpo", **options_of("grpo"))
    step.inputs["gate"] = gate.name
    assert train.run(job, step) == {"skipped": "0 of 8 completions are correct"}
    before = digests(root / "run" / START)
    assert digests(job.workdir(step)) == before


class Poison(TrainerCallback):
    """Makes a gradient infinite before the third update."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(root: Path) -> None:
    job, step = train_step(root, "kd", **options_of("kd", save_every=1))
    with with_callback(job, step, Poison()), pytest.raises(NumericsError, match="step 3"):
        train.run(job, step)
    assert step_of(last_complete(job.scratch(step))) == 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_that_has_ended_is_not_done_again(
    objective: str, root: Path, unbroken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the results are saved, with no checkpoint asked for before the end: no step is repeated."""
    work, unbroken_facts = unbroken(objective)
    job, step = train_step(root, objective.split()[0], **options_of(objective, save_every="1h"))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rqat.train.latents.save_offsets", killed)
        patch.setattr("rqat.stages.train.weights.copy_latents", killed)
        with pytest.raises(KeyboardInterrupt):
            train.run(job, step)
    begun: list[int] = []
    patched = saving.Saving.on_pre_optimizer_step

    def noted(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        begun.append(state.global_step)
        patched(self, args, state, control, **given)

    monkeypatch.setattr(saving.Saving, "on_pre_optimizer_step", noted)
    facts = train.run(job, step)
    assert begun == []
    assert digests(job.workdir(step)) == digests(work)
    assert {**facts, "train_seconds": 0} == {**unbroken_facts, "train_seconds": 0}


class Signalled(Exception):
    """What the process does about a signal."""


class Raise(TrainerCallback):
    """Sends this process a signal: within the fifth step, before, amid or after its update."""

    def __init__(self, number: int, at: str) -> None:
        self.number, self.at = number, at

    def _perhaps(self, at: str, done: int) -> None:
        if at == self.at and done == (5 if at == "on_step_end" else 4):
            signal.raise_signal(self.number)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._perhaps("on_step_begin", state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._perhaps("on_pre_optimizer_step", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._perhaps("on_step_end", state.global_step)


@pytest.mark.parametrize(
    ("objective", "number", "at", "saved"),
    [
        ("kd", signal.SIGTERM, "on_step_begin", 4),
        ("sft", signal.SIGHUP, "on_pre_optimizer_step", 5),
        ("grpo", signal.SIGINT, "on_step_begin", 4),
        ("grpo", signal.SIGTERM, "on_step_end", 5),
    ],
)
def test_a_signal_saves_the_last_whole_step(
    objective: str, number: int, at: str, saved: int, root: Path, unbroken: Any
) -> None:
    job, step = train_step(root, objective.split()[0], **options_of(objective, save_every="1h"))

    def handler(*_: Any) -> None:
        raise Signalled

    before = signal.signal(number, handler)
    try:
        with with_callback(job, step, Raise(number, at)), pytest.raises(Signalled):
            train.run(job, step)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert step_of(last_complete(job.scratch(step))) == saved
    train.run(job, step)
    assert digests(job.workdir(step)) == digests(unbroken(objective)[0])


@pytest.mark.parametrize("worth", [False, True])
def test_a_signal_waits_for_a_slow_disk_only_if_much_would_be_lost(
    worth: bool, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job, step = train_step(root, "kd", **options_of("kd", save_every="1h"))
    monkeypatch.setattr(saving, "BYTES_PER_S", 1000.0)
    monkeypatch.setattr(saving, "WORTH", 1e6 if worth else 0.1)  # of the few seconds that this training takes
    with with_callback(job, step, Raise(signal.SIGINT, "on_step_begin")), pytest.raises(KeyboardInterrupt):
        train.run(job, step)
    assert ("Saves step 4 before it ends" in caplog.text) is worth
    assert step_of(last_complete(job.scratch(step))) == (4 if worth else 0)


def test_checkpoints_by_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = train_step(root, "kd", **options_of("kd", steps=4, save_every="1.5s"))
    clock = iter(range(1000))
    monkeypatch.setattr(saving.time, "monotonic", lambda: float(next(clock)))
    written: list[int] = []
    write = saving.write_checkpoint
    monkeypatch.setattr(
        saving, "write_checkpoint", lambda folder, snapshot: (written.append(snapshot.step), write(folder, snapshot))
    )
    train.run(job, step)
    assert written[-1] == 4
    assert len(written) > 1


def test_a_checkpoint_that_cannot_be_written_ends_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = train_step(root, "kd", **options_of("kd", save_every=2))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saving, "write_checkpoint", full)
    with pytest.raises(RunError, match="disk is full"):
        train.run(job, step)


@pytest.mark.parametrize(
    ("forget", "hint"),
    [
        (lambda training: setattr(training, "optimizer", None), "optimizers=(training.optimizer, training.scheduler)"),
        (lambda training: setattr(training, "scheduler", None), "optimizers=(training.optimizer, training.scheduler)"),
        (lambda training: setattr(training, "callbacks", []), "callbacks=training.callbacks"),
        (lambda training: setattr(training, "model", copy.deepcopy(training.model)), "model=training.model"),
    ],
)
def test_a_trainer_that_forgets_what_it_was_given_is_told_before_the_first_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[Training], None], hint: str
) -> None:
    job, step = train_step(root, "sft", **options_of("sft"))
    plugin = type(job.make(step, "objective"))
    build = plugin.build_trainer

    def forgetful(self: Any, training: Training) -> Any:
        given = copy.copy(training)
        forget(given)
        return build(self, given)

    monkeypatch.setattr(plugin, "build_trainer", forgetful)
    with pytest.raises(PluginError, match=r"objective 'sft'.*it was given") as caught:
        train.run(job, step)
    assert hint in caught.value.hint
    assert not list(job.workdir(step).glob("trainer/checkpoint-*"))


def test_a_trainer_that_ends_early_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job, step = train_step(root, "sft", **options_of("sft"))
    plugin = type(job.make(step, "objective"))
    build = plugin.build_trainer

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = True

    def impatient(self: Any, training: Training) -> Any:
        trainer = build(self, training)
        trainer.add_callback(Stop())
        return trainer

    monkeypatch.setattr(plugin, "build_trainer", impatient)
    assert train.run(job, step)["steps"] == 1
    assert f"its trainer ended after step 1 of {step.settings.steps}" in caplog.text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": 9}, r"takes 9 steps, not the \d+ steps of the recipe"),
        ({"max_steps": -1}, r"takes whole epochs, not the \d+ steps of the recipe"),
        ({"gradient_accumulation_steps": 7}, r"takes \d+ rows a step, not the \d+ of the recipe"),
    ],
)
def test_a_trainer_with_steps_or_batches_of_its_own_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], says: str
) -> None:
    job, step = train_step(root, "sft", **options_of("sft"))
    plugin = type(job.make(step, "objective"))
    build = plugin.build_trainer

    def willful(self: Any, training: Training) -> Any:
        return build(self, replace(training, arguments=training.arguments | changes))

    monkeypatch.setattr(plugin, "build_trainer", willful)
    with pytest.raises(PluginError, match=says):
        train.run(job, step)


def test_an_objective_that_builds_no_trainer_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = train_step(root, "sft", **options_of("sft"))
    monkeypatch.setattr(type(job.make(step, "objective")), "build_trainer", lambda self, training: None)
    with pytest.raises(PluginError, match=r"objective 'sft'.*build_trainer returned None"):
        train.run(job, step)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_tokens": 4}, DataError, "longer than max_tokens=4"),
        ({"micro_batch": 3}, RqatError, "does not split into micro-batches of 3"),
        ({"optimizer": "AdmW"}, UnknownName, "Did you mean 'AdamW'"),
        ({"optimizer": "LBFGS"}, UnknownName, "not an optimizer"),
        ({"schedule": "cosin"}, UnknownName, "Did you mean 'cosine'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    root: Path, changes: dict[str, Any], error: type[RqatError], message: str
) -> None:
    job, step = train_step(root, "kd", **options_of("kd", **changes))
    with pytest.raises(error, match=message):
        train.run(job, step)


def test_trains_in_the_dtype_the_recipe_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, step = train_step(root, "kd", **options_of("kd", steps=2))
    job.plan.model = job.plan.model.model_copy(update={"dtype": "bfloat16"})
    plugin = type(job.make(step, "objective"))
    build = plugin.build_trainer
    seen: list[torch.dtype] = []

    def noted(self: Any, training: Any) -> Any:
        seen.append(training.model.dtype)
        return build(self, training)

    monkeypatch.setattr(plugin, "build_trainer", noted)
    train.run(job, step)
    assert seen == [torch.bfloat16]


def test_rows_that_are_too_long_are_left_out_and_counted(root: Path) -> None:
    job, step = train_step(root, "sft", source=Sums(rows=20), **options_of("sft", steps=2, max_tokens=12))
    facts = train.run(job, step)
    assert facts["rows_dropped_too_long"] > 0
    assert facts["rows_read"] == facts["rows_used"] + facts["rows_dropped_too_long"]


def test_training_that_changes_nothing_is_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Latents that stay in their cells and scales that stay on their steps: the same model, after all the work."""
    job, step = train_step(
        root, "sft", **options_of("sft", steps=2, lr=1e-9, scale_lr=None, zero_lr=None, other_lr=None)
    )
    facts = train.run(job, step)
    assert (facts["codes_changed"], facts["scales_changed"], facts["zeros_changed"]) == (0, 0, 0)
    assert "changed nothing" in caplog.text
    assert digests(root / "run" / START)["quantized.safetensors"] == digests(job.workdir(step))["quantized.safetensors"]


def test_training_that_changes_something_is_not(unbroken: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, facts = unbroken("sft")
    assert facts["codes_changed"] > 0
    assert "changed nothing" not in caplog.text
