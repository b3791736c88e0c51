"""A model split over processes: rows, states that change hands, and training that ends as in one process."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

import rqat
from rqat.contracts import QuantizedWeight
from rqat.model.checkpoint import load_checkpoint
from rqat.scheme import Scheme
from rqat.stages.train import run as train
from rqat.storage import SCRATCH, read_json, read_json_lines
from rqat.train.checkpoints import last_complete, parts_in, processes_of
from rqat.train.latents import FILE
from rqat.train.optimizer import QuantizedOptimizer
from rqat.train.shards import ALL, Share
from tests.together import launched, work_of
from tests.toys import quantized
from tests.training import digests, train_step, with_callback, write_start

SPLIT: dict[str, Any] = {
    "steps": 6, "batch": 4, "save_every": 2, "max_tokens": 64, "lr": 1e-3, "scale_lr": 1e-3, "zero_lr": 1e-2,
    "other_lr": 1e-3, "shard": True,
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {
    "kd": {**SPLIT, "micro_batch": 1, "gradient_checkpointing": True, "sft_weight": 0.1},
    "sft": {**SPLIT, "lr": 5e-2, "lr_in": "size"},
    "grpo": {**SPLIT, "generations": 4, "max_completion_tokens": 6, "kd_weight": 0.5},
}


# ---------------------------------------------------------------------------------------------------- without processes


@pytest.mark.parametrize(("length", "count"), [(8, 2), (7, 2), (5, 4), (1, 3), (64, 1)])
def test_a_share_is_what_torch_gives_out(length: int, count: int) -> None:
    """`fully_shard` splits as `torch.chunk` does, and gives nothing to those for whom no chunk is left."""
    rows = torch.arange(length)
    chunks = [chunk.tolist() for chunk in rows.chunk(count)]
    chunks += [[]] * (count - len(chunks))
    assert [Share(rank, count).of(rows).tolist() for rank in range(count)] == chunks


class Rows(nn.Module):
    """Two layers on grids and a norm, or some rows of each; nothing is computed with them."""

    def __init__(self, whole: Mapping[str, Tensor], share: Share) -> None:
        super().__init__()
        for name, weight in whole.items():
            self.add_module(name, module := nn.Module())
            module.weight = nn.Parameter(share.of(weight).clone())


def stepped(optimizer: QuantizedOptimizer, model: nn.Module, share: Share, steps: range) -> None:
    """Steps with gradients that are, together, the same for every number of processes."""
    for step in steps:
        for number, parameter in enumerate(model.parameters()):
            whole = torch.randn(WHOLE[number].shape, generator=torch.Generator().manual_seed(100 * step + number))
            parameter.grad = share.of(whole).clone()
        optimizer.step()
        optimizer.zero_grad()


WHOLE = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in ((7, 64), (6, 32), (5,))]


def held(share: Share, mixed: bool, *, codes: bool = True) -> tuple[nn.Module, QuantizedOptimizer]:
    model = nn.Sequential()
    schemes = [Scheme.parse("w2g32"), Scheme.parse("w3g16-sym" if mixed else "w2g32")]
    layers: dict[str, QuantizedWeight] = {}
    for name, weight, scheme in zip(("one", "two"), WHOLE, schemes, strict=False):
        linear = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        linear[0].weight.data.copy_(weight)
        layers[name] = quantized(linear, scheme)["0"]
        model.add_module(name, linear[0])
    parts = Rows({name: module.weight.data for name, module in model.named_children()} | {"norm": WHOLE[2]}, share)
    rates = {"lr": 1e-2 if codes else None, "scale_lr": 1e-2, "zero_lr": 1e-2, "other_lr": 1e-2}
    return parts, QuantizedOptimizer(parts, share.of_layers(layers), **rates)


@pytest.mark.parametrize("codes", [True, False])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (6, 2)])
def test_a_state_changes_hands_and_nothing_else_changes(before: int, after: int, mixed: bool, codes: bool) -> None:
    """Rows that several held are the same rows in the hands of others, moments and counters included."""
    saved = []
    for rank in range(before):
        share = Share(rank, before)
        model, optimizer = held(share, mixed, codes=codes)
        stepped(optimizer, model, share, range(3))
        saved.append(copy.deepcopy(optimizer.state_dict()))
    whole, unbroken = held(ALL, mixed, codes=codes)
    stepped(unbroken, whole, ALL, range(5))
    for rank in range(after):
        share = Share(rank, after)
        model, optimizer = held(share, mixed, codes=codes)
        optimizer.load_parts(saved, share)
        stepped(optimizer, model, share, range(3, 5))
        assert optimizer.steps_done == 5
        for mine, all_rows in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(mine, share.of(all_rows))
        for name, latent in optimizer.latents().items():
            assert torch.equal(latent, share.of(unbroken.latents()[name]))


def test_the_state_of_another_model_is_refused() -> None:
    _, optimizer = held(Share(0, 2), mixed=False)
    _, other = held(ALL, mixed=True)
    with pytest.raises((rqat.RunError, KeyError, ValueError, RuntimeError)):
        optimizer.load_parts([other.state_dict()], Share(0, 2))


def test_a_plain_model_computes_a_part_of_itself_at_once() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    x = torch.ones(1, 3)
    assert torch.equal(rqat.as_forward(model, model[0], x), model[0](x))


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    write_start(folder)
    return folder


@pytest.fixture
def root(start: Path, tmp_path: Path) -> Path:
    """A copy of the run folder, to train in."""
    return Path(shutil.copytree(start, tmp_path / "root"))


@pytest.fixture(scope="module")
def together(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have trained for every objective, with rows of the model each."""
    root = Path(shutil.copytree(start, tmp_path_factory.mktemp("together") / "root"))
    done = subprocess.run(launched(root, ASKED), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "sft"])
def test_two_halves_learn_what_one_process_learns(objective: str, together: Path, root: Path) -> None:
    """Only the order of a step's sums differs: some last places of float32, and hardly a code that was on a border."""
    job, step = train_step(root, objective, **ASKED[objective])
    train.run(job, step)
    alone, both = (read_json_lines(work_of(folder, objective) / "training.jsonl") for folder in (root, together))
    assert [line["tokens"] for line in both] == [line["tokens"] for line in alone]
    for figure in ("loss", "grad_norm"):
        assert [line[figure] for line in both] == pytest.approx([line[figure] for line in alone], rel=2e-6)
    mine, theirs = (load_checkpoint(work_of(folder, objective)) for folder in (root, together))
    assert type(theirs.model) is type(mine.model)
    assert read_json(work_of(together, objective) / "config.json") == read_json(
        work_of(root, objective) / "config.json"
    )
    before = load_checkpoint(root / "run" / "01-quantize-rtn").layers
    count = sum(layer.codes.numel() for layer in mine.layers.values())
    changed = sum(int((before[name].codes != layer.codes).sum()) for name, layer in mine.layers.items())
    different = sum(int((theirs.layers[name].codes != layer.codes).sum()) for name, layer in mine.layers.items())
    assert changed > count / 50
    assert different < count / 10_000
    assert digests(work_of(together, objective)).keys() == digests(work_of(root, objective)).keys() >= {FILE}


@pytest.mark.slow
def test_each_process_saves_its_rows(together: Path) -> None:
    checkpoint = last_complete(work_of(together, "sft") / SCRATCH)
    assert checkpoint is not None
    parts = parts_in(checkpoint)
    assert [part.name for part in parts] == ["part-0", "part-1"]
    sizes = [sum(file.stat().st_size for file in part.glob("*.safetensors")) for part in parts]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.slow
def test_completions_are_written_with_the_gathered_model(together: Path) -> None:
    """Every process its own; what the sampler and the trainer make of a token agrees as closely as in one process."""
    lines = read_json_lines(work_of(together, "grpo") / "training.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 7))
    first, second = ((together / f"graded-{rank}").read_text().splitlines() for rank in (0, 1))
    assert len(first) == len(second) == 12
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-4
    assert all(line["distillation/divergence"] > 0 for line in lines)


@pytest.mark.long
def test_killed_it_goes_on_with_the_same_bytes_and_in_one_process(
    together: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"kd": ASKED["kd"]}
    work = work_of(root, "kd")
    with subprocess.Popen(launched(root, asked), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while (
            len(read_json_lines(work / "training.jsonl")) < 5 and time.monotonic() < deadline and process.poll() is None
        ):
            time.sleep(0.002)
        os.kill(int((root / "pid-1").read_text()), signal.SIGKILL)
        assert process.wait(timeout=30) == 1
    checkpoint = last_complete(work / SCRATCH)
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-4"
    assert (processes_of(checkpoint), len(parts_in(checkpoint))) == (2, 2)

    copy_of_it = Path(shutil.copytree(root, tmp_path / "copy"))
    done = subprocess.run(launched(root, asked), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(work) == digests(work_of(together, "kd"))
    unbroken = read_json_lines(work_of(together, "kd") / "training.jsonl")
    assert [{**line, "seconds": 0} for line in read_json_lines(work / "training.jsonl")] == [
        {**line, "seconds": 0} for line in unbroken
    ]

    job, step = train_step(copy_of_it, "kd", **ASKED["kd"])
    with caplog.at_level(logging.WARNING, "rqat"):
        train.run(job, step)
    assert "resumes with 1 process(es), its checkpoint was saved by 2" in caplog.text
    losses = [line["loss"] for line in read_json_lines(work_of(copy_of_it, "kd") / "training.jsonl")]
    assert losses == pytest.approx([line["loss"] for line in unbroken], rel=2e-6)


class Stop(TrainerCallback):
    """Ends a training within its fifth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_checkpoint_of_one_process_is_gone_on_with_in_halves(together: Path, root: Path) -> None:
    job, step = train_step(root, "kd", **ASKED["kd"])
    with with_callback(job, step, Stop()), pytest.raises(KeyboardInterrupt):
        train.run(job, step)
    done = subprocess.run(launched(root, {"kd": ASKED["kd"]}), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    work, unbroken = work_of(root, "kd"), work_of(together, "kd")
    assert len(parts_in(work / SCRATCH / "checkpoint-6")) == 2
    losses, expected = (
        [line["loss"] for line in read_json_lines(folder / "training.jsonl")] for folder in (work, unbroken)
    )
    assert losses == pytest.approx(expected, rel=2e-6)
