"""A run folder with a quantized tiny model in it, and train and gate steps on top, without recipe and pipeline."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback

from rqat.contracts import Options, QuantizedWeight, Row, Source, Split, Task, TaskOptions, Verdict
from rqat.job import Job
from rqat.keys import ModelKeys
from rqat.model.checkpoint import save_checkpoint
from rqat.registry import Registry
from rqat.scheme import Scheme, Schemes
from rqat.stage import Step, Use
from rqat.stages.gate import GateSettings
from rqat.stages.train import REWARDS, TrainKeys
from rqat.stages.train import run as train
from rqat.storage import sha256_of
from rqat_kernels.grid import dequantize, fit_minmax, quantize

from .tiny import save_tiny, tiny_model, tiny_tokenizer

START = "01-quantize-rtn"


class Sums(Source):
    """`12+34=` -> `46`, over and over."""

    def __init__(self, rows: int | None = None) -> None:
        super().__init__(Options())
        self.number = rows

    def rows(self, split: Split, seed: int) -> Iterator[Row]:
        index = 0
        while self.number is None or index < self.number:
            a, b = (7 * index + seed) % 50, (13 * index) % 50
            text = "one " * (index % 7)
            yield {"prompt": f"{text}{a}+{b}=", "completion": f"{a + b}" + "!" * (index % 5), "answer": str(a + b)}
            index += 1


class EvenLength(Task):
    """Correct is a completion that holds an even digit: a random model gets some right and some wrong."""

    def __init__(self) -> None:
        super().__init__(TaskOptions())

    def problems(self) -> list[Row]:
        return []

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        return "correct" if sum(map(ord, completion)) % 2 else "wrong"


@dataclass
class StubJob(Job):
    """A Job that takes some of its parts from `given`."""

    given: Any = None

    def make(self, step: Step, role: str) -> Any:
        return self.given[role] if role in self.given else super().make(step, role)


def write_start(folder: Path, scheme: Scheme | None = None) -> Path:
    """A tiny model in `folder/model` and its rounded form as a finished step of the run in `folder/run`."""
    scheme = scheme or Scheme.parse("w2g32")
    save_tiny(folder / "model")
    model, layers = tiny_model(), {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                groups = scheme.groups(module.in_features)
                scale, zero = fit_minmax(module.weight, groups, scheme.max_code, symmetric=scheme.symmetric)
                codes = quantize(module.weight, scale, zero, scheme.max_code)
                layers[name] = QuantizedWeight(codes, scale, zero.to(torch.uint8), scheme=scheme)
                module.weight.copy_(dequantize(codes, scale, zero))
    start = folder / "run" / START
    start.mkdir(parents=True)
    save_checkpoint(start, model, tiny_tokenizer(), layers)
    return start


def train_step(
    folder: Path,
    objective: str,
    *,
    source: Source | None = None,
    stage: str = "train",
    log: tuple[str, ...] = (),
    **keys: Any,
) -> tuple[StubJob, Step]:
    """A job in `folder/run` and a step `02-<stage>-<objective>` of it, whose work folder exists."""
    registry = Registry.discover()
    card = registry.card("objective", objective)
    settings = TrainKeys.model_validate(
        {"objective": objective, "data": {"source": "sums"}, "steps": 4, "batch": 4, **keys}
    )
    use = Use(card, card.options(**settings.options))
    given: dict[str, Any] = {"source": source or Sums()}
    parts = {"objective": use}
    if card.graded:
        given["task"] = EvenLength()
        rewards = [(registry.card("reward", name), keys) for name, keys in (settings.rewards or REWARDS).items()]
        made = tuple((Use(reward, reward.options(**keys.options)), keys.weight) for reward, keys in rewards)
        parts = {"objective": Use(card, use.options, made), "task": use}
    recipe = SimpleNamespace(name="run", log=log)
    plan: Any = SimpleNamespace(
        model=ModelKeys(path=str(folder / "model")),
        scheme=Schemes.parse("w2g32"),
        fingerprint=lambda step: step.name,
        recipe=recipe,
    )
    told = GateSettings.before(settings, use) if stage == "gate" else settings
    step = Step(f"02-{stage}-{objective}", stage, objective, told, parts, {"start": START})  # type: ignore[arg-type]
    job = StubJob(plan, folder / "run", registry, given=given)
    job.workdir(step).mkdir(exist_ok=True)
    return job, step


@contextmanager
def with_callback(job: Job, step: Step, callback: TrainerCallback) -> Iterator[None]:
    """Trainers of a step's objective have one more callback meanwhile."""
    plugin = type(job.make(step, "objective"))
    build = plugin.build_trainer

    def built(self: Any, training: Any) -> Any:
        trainer = build(self, training)
        trainer.add_callback(callback)
        return trainer

    with mock.patch.object(plugin, "build_trainer", built):
        yield


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every safetensors file."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


if __name__ == "__main__":  # run by tests that kill it
    _, root, name, options = sys.argv
    train.run(*train_step(Path(root), name, **json.loads(options)))
