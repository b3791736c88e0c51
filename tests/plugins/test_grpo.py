"""The GRPO objective: what it hands to TRL, the watch that stops a run, and settings that cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rqat
from rqat.contracts import Context, Training
from rqat.errors import RqatError
from rqat.stages.train import run as train
from rqat.train.data import prepare_rows
from rqat.train.rollouts import Rollouts
from rqat_grpo import Options
from rqat_grpo.objective import Grpo
from rqat_grpo.rollouts import quantile
from rqat_grpo.watch import Watch
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import Sums, digests, train_step, write_start


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


def test_a_gap_between_sampler_and_trainer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(Options(gap_bound=0.1))
    for gap in (0.05, 0.3, 0.4):
        watch.on_log(None, history({"sampling/sampling_logp_difference/p95": gap}), None)  # type: ignore[arg-type]
    [line] = caplog.messages
    assert "by 0.3 nats (gap_bound 0.1)" in line


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


def training(**more: Any) -> Training:
    tokenizer = tiny_tokenizer()
    rows = prepare_rows(
        Sums().rows("train", 0), tokenizer, steps=1, batch=4, max_tokens=60, seed=0, writes=True, graded=True
    ).rows
    arguments = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    model = tiny_model()
    rollouts = Rollouts(model, tokenizer, limit=8)
    return Training(model, tokenizer, rows, None, None, arguments, 64, rollouts=rollouts, **more)  # type: ignore[arg-type]


def problems(batch: int = 8, max_tokens: int = 64, processes: int = 1, **options: Any) -> list[str]:
    context = Context({"batch": batch, "max_tokens": max_tokens}, processes=processes)
    return [f"{problem.key}: {problem.text} {problem.hint}" for problem in Options(**options).check(context)]


def test_settings_that_cannot_work_are_told_before_any_work() -> None:
    assert not problems(generations=4, max_completion_tokens=63)
    assert not problems(generations=8)
    [line] = problems(batch=6, generations=4)
    assert line.startswith("batch: a batch of 6 completions is not a multiple of generations=4.")
    assert "use a batch of 4 or 8" in line
    assert "use a batch of 8," in problems(batch=6, generations=8)[0]
    [line] = problems(max_completion_tokens=64)
    assert line.startswith("max_completion_tokens: max_completion_tokens is 64, but")


def test_trl_gets_the_rewards_and_the_room_that_the_host_gives(tmp_path: Any) -> None:
    def score(**columns: Any) -> list[float]:
        return [0.0] * len(columns["prompts"])

    given = training(rewards=[score, score], reward_weights=[1.0, -0.5], max_completion_tokens=17)
    given.arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    trainer: Any = Grpo(Options(generations=4)).build_trainer(given)
    assert trainer.max_completion_length == 17
    assert trainer.reward_weights.tolist() == [1.0, -0.5]
    assert trainer.beta == 0
    assert trainer.ref_model is None


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[2.0, 0.5, 3.0], [1.0, 1.0, 1.0]]),
        ("token_mask", [[2.0, 0.5, 0.0], [1.0, 1.0, 1.0]]),
        ("sequence_truncate", [[3.0], [1.0]]),
        ("sequence_mask", [[0.0], [1.0]]),
    ],
)
def test_the_ratio_of_trainer_and_sampler(mode: str, expected: list[list[float]], tmp_path: Path) -> None:
    """Ratios 2, 1/2 and 4 of three tokens, of which the completion's is 4; what is masked counts nothing."""
    given = training(rewards=[lambda **_: []], reward_weights=[1.0], max_completion_tokens=17)
    given.arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    trainer: Any = Grpo(Options(generations=4, correction=mode)).build_trainer(given)  # type: ignore[arg-type]
    trained = torch.log(torch.tensor([[0.2, 0.2, 0.8], [0.5, 0.5, 0.5]]))
    sampled = torch.log(torch.tensor([[0.1, 0.4, 0.2], [0.5, float("nan"), 0.1]]))
    inputs = {"sampling_per_token_logps": sampled, "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    torch.testing.assert_close(trainer._ratio(trained, inputs), torch.tensor(expected))
    torch.testing.assert_close(trainer._apart[0].exp(), torch.tensor([2.0, 2.0, 4.0, 1.0, 1.0]))


@pytest.mark.slow
def test_settings_of_the_checkpoint_do_not_change_rollouts(tmp_path: Path) -> None:
    """TRL fills its own settings up from the model's, as transformers does."""
    found = []
    for name, more in (("own", {}), ("foreign", {"min_new_tokens": 6, "suppress_tokens": [*range(3, 60)]})):
        start = write_start(tmp_path / name)
        file = start / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
        keys: dict[str, Any] = {"batch": 4, "generations": 2, "steps": 2, "max_tokens": 64, "max_completion_tokens": 6}
        job, step = train_step(tmp_path / name, "grpo", **keys)
        train.run(job, step)
        found.append(digests(job.workdir(step)))
        written = json.loads((job.workdir(step) / "generation_config.json").read_text())
        assert more.items() <= written.items()
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 2, 20, 1001])
def test_the_quantile_is_torchs(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    for share in (0.0, 0.5, 0.95, 1.0):
        torch.testing.assert_close(quantile(values, share), values.quantile(share), rtol=1e-6, atol=1e-6)


def test_a_quantile_of_more_tokens_than_torch_takes() -> None:
    count = (1 << 24) + 1
    with pytest.raises(RuntimeError, match="too large"):
        torch.arange(count).float().quantile(0.5)
    assert quantile(torch.arange(count, dtype=torch.float32), 0.5) == count // 2
