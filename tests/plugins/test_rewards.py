"""The built-in rewards, and how a recipe names and weights them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rqat.testing
from rqat.contracts import Completion
from rqat.errors import RecipeError
from rqat.plan import Plan, build_plan
from rqat.recipe import load_recipe
from rqat.registry import Registry

RECIPE = """
name: rewarded
model: builtin:tiny-reasoner
quantize: rtn
train:
  - objective: {objective}
    data: arith
    task: arith
    steps: 2
    batch: 16
    rewards: {rewards}
"""


class TestCorrect(rqat.testing.RewardSuite):
    name = "correct"


class TestLength(rqat.testing.RewardSuite):
    name = "length"


class TestBoxed(rqat.testing.RewardSuite):
    name = "boxed"


def score(name: str, verdict: Any = "wrong", text: str = "", tokens: int = 8, ended: bool = True) -> float:
    registry = Registry.discover()
    card = registry.card("reward", name)
    completion = Completion(text, tuple(range(tokens)), ended=ended, limit=32)
    made: float = registry.make(card, card.options()).score(completion, {}, verdict)
    return made


def test_what_they_reward() -> None:
    assert [score("correct", verdict) for verdict in ("correct", "wrong", "unverifiable", None)] == [1, 0, 0, 0]
    assert [score("length", tokens=tokens) for tokens in (0, 8, 32)] == [0, 0.25, 1]
    assert [score("boxed", text=text) for text in (r"so \boxed{7}", "so 7")] == [1, 0]
    assert score("boxed", text=r"so \boxed{7} and", ended=False) == 0


def planned(tmp_path: Path, rewards: str, objective: str = "grpo") -> Plan:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(rewards=rewards, objective=objective), encoding="utf-8")
    return build_plan(load_recipe(path), Registry.discover())


def weights(plan: Plan) -> dict[str, float]:
    [step] = [step for step in plan.steps if step.stage == "train"]
    return {use.card.name: weight for use, weight in step.parts["objective"].parts}


def test_a_recipe_weights_them(tmp_path: Path) -> None:
    assert weights(planned(tmp_path, "{correct: 1.0, length: -0.1}")) == {"correct": 1.0, "length": -0.1}
    assert weights(planned(tmp_path, "{correct: {}, boxed: {weight: 0.2}}")) == {"correct": 1.0, "boxed": 0.2}
    assert weights(planned(tmp_path, "null")) == {"correct": 1.0}


def test_they_count_in_the_fingerprint(tmp_path: Path) -> None:
    def fingerprint(rewards: str) -> str:
        plan = planned(tmp_path, rewards)
        return plan.fingerprint(plan.steps[-2])

    assert fingerprint("null") == fingerprint("{correct: 1}")
    assert (
        len({fingerprint(text) for text in ("{correct: 1}", "{correct: 2}", "{boxed: 1}", "{correct: 1, boxed: 1}")})
        == 4
    )


def test_a_teacher_alone_is_enough(tmp_path: Path) -> None:
    """Distillation on the model's own completions: no gate, no grader, and rows without answers."""
    path = tmp_path / "recipe.yaml"
    text = RECIPE.format(rewards="{correct: 0}\n    kd_weight: 1.0", objective="grpo")
    for one in (text, text.replace("    task: arith\n", "")):
        path.write_text(one, encoding="utf-8")
        plan = build_plan(load_recipe(path), Registry.discover())
        assert [step.stage for step in plan.steps] == ["quantize", "train", "export"]
        assert weights(plan) == {"correct": 0.0}
    path.write_text(text.replace("task: arith", "task: null").replace("{correct: 0}", "{correct: 1}"))
    with pytest.raises(RecipeError, match="'grpo' is rewarded by a task's grader; add"):
        build_plan(load_recipe(path), Registry.discover())


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("{corect: 1}", r"recipe.yaml:11 train.0.rewards.corect: 'corect' is not a reward.*Did you mean 'correct'"),
        ("{correct: {wieght: 1}}", r"train.0.rewards.correct.wieght: 'wieght' is not a key.*Did you mean 'weight'"),
        ("{correct: {weight: much}}", "train.0.rewards.correct.weight: 'much' is not a number"),
        ("{correct: much}", "train.0.rewards.correct: 'much' is neither a weight nor a mapping"),
        ("{correct: 0}", "train.0.rewards: every weight is 0, so nothing .*; change one, or set kd_weight or beta"),
        ("{}", "train.0.rewards"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, rewards: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(tmp_path, rewards)


def test_an_objective_that_is_not_graded_takes_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.0.rewards: 'kd' is not trained on rewards; .* use one that is: grpo"):
        planned(tmp_path, "{correct: 1}", objective="kd")
