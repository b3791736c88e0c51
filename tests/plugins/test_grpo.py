"""The GRPO objective: rewards, the watch that stops a run, and settings that cannot work."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rqat
from rqat.contracts import Training
from rqat.errors import DataError, RqatError
from rqat.train.data import prepare_rows
from rqat_grpo import Options
from rqat_grpo.objective import Grpo, correctness
from rqat_grpo.watch import Watch
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import Sums


@pytest.mark.parametrize("chat", [False, True])
def test_rewards_are_one_for_correct_and_zero_for_all_else(chat: bool) -> None:
    logged: dict[str, float] = {}
    texts = ["4", "5", "?", "4"]
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    reward = correctness(
        lambda text, answer: "unverifiable" if text == "?" else "correct" if text == answer else "wrong"
    )
    rewards = reward(
        prompts=[], completions=completions, answer=["4"] * 4, completion_ids=[[1], [7] * 40, [2], [3]],
        log_metric=logged.__setitem__,
    )  # fmt: skip
    assert rewards == [1.0, 0.0, 0.0, 1.0]
    assert logged == {"unverifiable": 0.25, "repetition": 0.25}


@pytest.mark.parametrize(
    ("ids", "loop"),
    [
        ([], False),
        ([5] * 31, False),
        ([5] * 32, True),
        ([1, 2, 3, *[8, 9, 10] * 11], True),
        ([*[8, 9, 10] * 11, 8], True),
        ([*[8, 9, 10] * 11, 7], False),
        (list(range(200)), False),
        ([*range(40)] * 4, True),
        ([*range(40)] * 3, False),
        ([*range(65)] * 4, True),
    ],
)
def test_loops_are_told_from_text(ids: list[int], loop: bool) -> None:
    assert rqat.is_looping(ids) is loop


def history(*entries: dict[str, float]) -> Any:
    base = {"frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.1, "repetition": 0.0, "reward": 0.4}
    return SimpleNamespace(global_step=len(entries), log_history=[{"loss": 0.0}, *({**base, **e} for e in entries)])


def judge(*entries: dict[str, float], **options: Any) -> None:
    Watch(Options(patience=3, **options)).on_log(None, history(*entries), None)  # type: ignore[arg-type]


def test_a_run_without_signal_is_stopped() -> None:
    silent = {"frac_reward_zero_std": 1.0, "reward": 0.0}
    judge(silent, silent)
    judge(silent, silent, {}, silent, silent)
    with pytest.raises(RqatError, match="step 4: no group of completions carried signal over the last 3 steps"):
        judge({}, silent, silent, silent)


@pytest.mark.parametrize(
    ("key", "words"),
    [("completions/clipped_ratio", "100% of the completions were cut off"), ("repetition", "in a loop")],
)
def test_a_policy_that_runs_on_or_in_circles_is_stopped(key: str, words: str) -> None:
    judge({key: 1.0}, {}, {})
    with pytest.raises(RqatError, match=words):
        judge({key: 1.0}, {key: 1.0}, {key: 1.0})
    judge({key: 1.0}, {key: 1.0}, {key: 1.0}, truncation_bound=1.0, repetition_bound=1.0)


def training(max_tokens: int = 64, batch: int = 8, **more: Any) -> Training:
    tokenizer = tiny_tokenizer()
    rows = prepare_rows(Sums().rows("train", 0), tokenizer, steps=1, batch=4, max_tokens=60, seed=0, rollouts=True).rows
    arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
    given = {"grade": lambda text, answer: "wrong", **more}
    return Training(tiny_model(), tokenizer, rows, None, None, arguments, max_tokens, **given)  # type: ignore[arg-type]


def test_settings_that_cannot_work_are_refused() -> None:
    objective = Grpo(Options(generations=4))
    with pytest.raises(RqatError, match="6 completions, not a multiple of generations=4"):
        objective.build_trainer(training(batch=6))
    with pytest.raises(DataError, match="no completion fits"):
        objective.build_trainer(training(max_tokens=5))
    with pytest.raises(RqatError, match="grader"):
        objective.build_trainer(training(grade=None))


def test_completions_get_the_room_that_the_longest_prompt_leaves(tmp_path: Any) -> None:
    given = training()
    longest = max(given.rows["prompt_tokens"])
    given.arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    for asked, expected in ((None, 64 - longest), (5, 5), (1000, 64 - longest)):
        trainer: Any = Grpo(Options(generations=4, max_completion_tokens=asked)).build_trainer(given)
        assert trainer.max_completion_length == expected
        assert trainer.beta == 0
        assert trainer.ref_model is None
