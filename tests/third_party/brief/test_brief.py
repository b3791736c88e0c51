"""A length penalty is a reward, weighted beside others in a recipe, and GRPO stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import rqat.testing
from rqat.contracts import Completion, Context
from rqat.registry import Registry
from tests.third_party.installed import install, qat

RECIPE = """
name: brief
model: builtin:tiny-reasoner
scheme: w8g128
quantize: rtn
train:
  - objective: grpo
    data: {source: arith, steps: [2, 3]}
    task: arith
    rewards: {correct: 1.0, acme-brief: {weight: -0.5, target: 20, only_right: false}}
    gate: {action: warn, prompts: 2, samples: 2}
    generations: 4
    max_completion_tokens: 60
    steps: 2
    batch: 8
    max_tokens: 200
export: null
"""


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    install(monkeypatch, tmp_path / "site", "brief", "rqat_acme_brief")
    return Registry.discover()


def score(registry: Registry, tokens: int, verdict: str = "correct", **options: object) -> float:
    card = registry.card("reward", "acme-brief")
    completion = Completion("", tuple(range(tokens)), ended=True, limit=100)
    made: float = registry.make(card, registry.options(card, options)).score(completion, {}, verdict)
    return made


def test_only_what_is_beyond_the_target_costs(registry: Registry) -> None:
    assert [score(registry, tokens, target=20) for tokens in (0, 20, 60, 100)] == [0, 0, 0.5, 1]
    assert score(registry, 60, "wrong", target=20) == 0
    assert score(registry, 60, "wrong", target=20, only_right=False) == 0.5


def test_a_target_that_is_never_reached_is_told(registry: Registry) -> None:
    card = registry.card("reward", "acme-brief")
    [problem] = registry.options(card, {"target": 300}).check(Context({"max_tokens": 256}))
    assert problem.level == "warning"


@pytest.mark.slow
def test_grpo_trains_on_both_rewards(tmp_path: Path) -> None:
    lines, _ = qat(tmp_path, RECIPE)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        brief = line["rewards/acme-brief/mean"]
        assert 0 < brief <= 1
        assert line["reward"] == pytest.approx(line["rewards/correct/mean"] - 0.5 * brief, abs=1e-5)
        # All beyond the target is charged, whether right or wrong: the mean length says how much.
        assert brief == pytest.approx(max(0, line["completions/mean_length"] - 20) / 40, abs=0.05)


class TestSuite(rqat.testing.RewardSuite):
    name = "acme-brief"

    @property
    def _registry(self) -> Registry:
        return Registry.discover()
