"""The suite of objectives finds each way in which an objective commonly goes wrong, and names it."""

from __future__ import annotations

import sys

import pytest

from rqat.discovery import PATHS
from rqat.registry import Registry
from rqat.testing import examine

OBJECTIVES = '''
import rqat

class Right(rqat.Objective):
    """Cross entropy; what the others do wrong is what they change."""

    def build_trainer(self, training):
        from trl import SFTConfig

        return self.trainer(training)(
            model=training.model,
            args=SFTConfig(**training.arguments, **self.config()),
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            **self.given(training),
        )

    def config(self):
        return {"max_length": None}

    def given(self, training):
        return {"optimizers": (training.optimizer, training.scheduler), "callbacks": training.callbacks}

    def trainer(self, training):
        from trl import SFTTrainer

        return SFTTrainer

class NoOptimizer(Right):
    def given(self, training):
        return {"callbacks": training.callbacks}

class NoSchedule(Right):
    def given(self, training):
        return {"optimizers": (training.optimizer, None), "callbacks": training.callbacks}

class NoCallbacks(Right):
    def given(self, training):
        return {"optimizers": (training.optimizer, training.scheduler)}

class Cuts(Right):
    def config(self):
        return {}

class Shuffles(Right):
    def trainer(self, training):
        from torch.utils.data import RandomSampler

        class Shuffling(super().trainer(training)):
            def _get_train_sampler(self, dataset=None):
                return RandomSampler(self.train_dataset)

        return Shuffling

class MeanOfMeans(Right):
    counts = False

    def trainer(self, training):
        objective = self

        class OwnLoss(super().trainer(training)):
            def __init__(self, **given):
                super().__init__(**given)
                self.model_accepts_loss_kwargs = objective.counts

            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                loss = objective.loss(model, inputs, training)
                return (loss, {}) if return_outputs else loss

        return OwnLoss

    def loss(self, model, inputs, training):
        return model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss

class IgnoresCount(MeanOfMeans):
    counts = True

class ChangesTeacher(MeanOfMeans):
    def loss(self, model, inputs, training):
        next(training.teacher.parameters()).data.mul_(1.01)
        return super().loss(model, inputs, training)

class WakesTeacher(MeanOfMeans):
    def loss(self, model, inputs, training):
        training.teacher.train()
        return super().loss(model, inputs, training)

class WritesShuffled(rqat.Objective):
    def build_trainer(self, training):
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(**training.arguments, num_generations=2, max_completion_length=8)
        return GRPOTrainer(
            model=training.model,
            reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
            args=config,
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )

@rqat.hookimpl
def register_objectives(register):
    for part in (Right, NoOptimizer, NoSchedule, NoCallbacks, Cuts, Shuffles, MeanOfMeans, IgnoresCount):
        register(part.__name__.lower(), load=":" + part.__name__, summary="a test")
    for part in (ChangesTeacher, WakesTeacher):
        register(part.__name__.lower(), load=":" + part.__name__, summary="a test", teacher=True)
    register("writesshuffled", load=":WritesShuffled", summary="a test", writes=True)
'''


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("plugin") / "acme_wrong_objectives.py"
    file.write_text(OBJECTIVES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PATHS, str(file))
        patch.setattr(sys, "path", list(sys.path))
        found = Registry.discover()
        assert not found.broken
        yield found
    del sys.modules["acme_wrong_objectives"]


def wrong(registry: Registry, name: str) -> dict[str, str]:
    """What the suite finds, by test."""
    results = examine(registry, registry.card("objective", name))
    return {result.test: result.error for result in results if result.error}


@pytest.mark.slow
def test_a_right_objective_passes(registry: Registry):
    assert wrong(registry, "right") == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "test", "complaint"),
    [
        ("nooptimizer", "it uses the optimizer it is given", "does not use the optimizer it was given"),
        ("noschedule", "it uses the optimizer it is given", "does not use the schedule it was given"),
        ("nocallbacks", "it uses the callbacks it is given", "pass callbacks=training.callbacks"),
        ("cuts", "rows arrive whole and in order", "was cut: 1024 of its 11"),
        ("shuffles", "rows arrive whole and in order", "nothing may shuffle or sort them"),
        ("writesshuffled", "rows arrive whole and in order", "say shuffle_dataset=False"),
        ("meanofmeans", "micro batches agree", "divide the summed loss by num_items_in_batch"),
        ("ignorescount", "micro batches agree", "divide the summed loss by num_items_in_batch"),
        ("changesteacher", "the teacher stays as it is", "training has changed the teacher: model.embed_tokens.weight"),
        ("wakesteacher", "the teacher stays as it is", "left the teacher in train mode"),
    ],
)
def test_each_fault_is_found_by_its_own_line(registry: Registry, name: str, test: str, complaint: str):
    found = wrong(registry, name)
    assert complaint in found[test]
    others = {"nooptimizer": {"it trains and stays on the grid", "micro batches agree"}}
    others |= {name: {"micro batches agree"} for name in ("changesteacher", "wakesteacher")}
    assert set(found) <= {test} | others.get(name, set()), found
