"""The GRPO objective: what it hands to TRL, the watch that stops a run, and settings that cannot work."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from trl.trainer.utils import add_fused_lm_head

import rqat
from rqat.contracts import Context, Training
from rqat.errors import RqatError
from rqat.stages.train import run as train
from rqat.train.data import prepare_rows
from rqat.train.rollouts import Rollouts
from rqat_grpo import Options
from rqat_grpo.layout import Layout, by_length
from rqat_grpo.objective import Grpo
from rqat_grpo.rollouts import Trainer, quantile
from rqat_grpo.watch import Watch
from tests.rqat.model.test_families import random_model
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
    judge({}, silent, silent, silent, kd_weight=0.5)  # there is a teacher to learn from


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


def built(tmp_path: Path, **options: Any) -> Any:
    """A trainer whose teacher is another model than its student."""
    given = training(rewards=[lambda **_: []], reward_weights=[1.0], max_completion_tokens=17)
    given.arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    given.teacher = tiny_model(seed=1).requires_grad_(False)
    trainer = Grpo(Options(generations=4, **options)).build_trainer(given)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def micro_batch(advantages: list[float]) -> dict[str, Any]:
    """Two prompts, the first padded, with completions, the second of which is padded; five tokens count."""
    ids = torch.arange(3, 13).view(2, 5)
    prompt_mask, completion_mask = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    return {
        "prompt_ids": ids[:, :2] * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, 2:] * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(5.0),
        "sampling_per_token_logps": torch.full((2, 3), -3.0),
    }


def step_of(lengths: list[tuple[int, int]], parts: int) -> list[dict[str, Any]]:
    """A step as TRL splits it: rows of prompts and completions so long, whose tokens say which row they are of."""
    prompts, completions = (max(pair[k] for pair in lengths) for k in (0, 1))
    prompt_mask = torch.tensor([[0] * (prompts - p) + [1] * p for p, _ in lengths])
    completion_mask = torch.tensor([[1] * c + [0] * (completions - c) for _, c in lengths])
    number = torch.arange(1, len(lengths) + 1)[:, None]
    whole = {
        "prompt_ids": 100 * number * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": (200 * number + torch.arange(completions)) * completion_mask,
        "completion_mask": completion_mask,
        "advantages": number[:, 0].float(),
        "texts": [str(row + 1) for row in range(len(lengths))],
        "num_items_in_batch": torch.tensor(7.0),
        "num_images": None,
    }
    size = len(lengths) // parts
    return [
        {k: v if k.startswith("num_") else v[i * size : (i + 1) * size] for k, v in whole.items()}  # type: ignore[index]
        for i in range(parts)
    ]


def test_rows_share_a_micro_batch_with_rows_of_their_length() -> None:
    lengths = [(3, 1), (1, 9), (2, 4), (5, 6), (1, 1), (4, 8)]
    found = by_length(step_of(lengths, 3))
    assert [part["texts"] for part in found] == [["6", "4"], ["2", "3"], ["1", "5"]]
    for part in found:
        assert part["num_items_in_batch"] == 7
        assert part["num_images"] is None
        assert part["advantages"].tolist() == [float(name) for name in part["texts"]]
        rows = [lengths[int(name) - 1] for name in part["texts"]]
        assert part["prompt_mask"].sum(1).tolist() == [row[0] for row in rows]
        assert part["completion_mask"].sum(1).tolist() == [row[1] for row in rows]
        assert (part["prompt_ids"].amax(1) // 100).tolist() == [int(name) for name in part["texts"]]


@pytest.mark.parametrize(("loss_type", "kept"), [("dapo", False), ("bnpo", True)])
def test_a_mean_of_a_micro_batch_is_of_rows_taken_by_chance(loss_type: str, kept: bool, tmp_path: Path) -> None:
    given = training(rewards=[lambda **_: []], reward_weights=[1.0], max_completion_tokens=17)
    given.arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    given.arguments |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    given.optimizer = torch.optim.SGD(given.model.parameters(), lr=0.1)
    trainer: Any = Grpo(Options(generations=4, loss_type=loss_type)).build_trainer(given)  # type: ignore[arg-type]
    [whole] = step_of([(1, tokens) for tokens in (5, 1, 7, 2, 8, 3, 6, 4)], 1)
    trainer._generate_and_score_completions = lambda _: whole
    trainer.model.train()
    torch.manual_seed(0)
    first = trainer._prepare_inputs({})
    trainer._step += 1
    second = trainer._prepare_inputs({})
    lengths = [part["completion_mask"].sum(1).tolist() for part in (first, second)]
    assert sorted(lengths[0] + lengths[1]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (lengths != [[8, 7, 6, 5], [4, 3, 2, 1]]) == kept


def test_a_prompt_stands_beside_its_completion() -> None:
    [part] = step_of([(1, 3), (3, 2), (2, 0)], 1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
    ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
    layout = Layout.of(ids, mask, 3)
    assert layout.mask.sum(1).tolist() == [4, 5, 2]
    rows = [row[there].tolist() for row, there in zip(layout.ids, layout.mask.bool(), strict=True)]
    assert rows == [[100, 200, 201, 202], [200, 200, 200, 400, 401], [300, 300]]
    assert layout.labels.tolist() == [[-100, 200, 201, 202, -100], [-100, -100, -100, 400, 401], [-100] * 5]
    scores = layout.labels[:, 1:].float()
    assert layout.completions(scores, mask).tolist() == [[200, 201, 202], [400, 401, 0], [0, 0, 0]]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen2", "qwen3_moe"])
def test_the_scores_are_those_of_trl(family: str) -> None:
    """Of windows that slide and of experts, too: its own method, on rows as it pads them."""
    model = random_model(family).requires_grad_(True)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    trainer: Any = Trainer.__new__(Trainer)
    trainer.accelerator = SimpleNamespace(autocast=nullcontext)
    [part] = step_of([(1, 9), (8, 1), (3, 0), (12, 14), (2, 5)], 1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
    ids = torch.randint(3, 128, mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    theirs = trl.GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # type: ignore[attr-defined]
    for size in (None, 2):
        given = (model, ids, mask, 14, size, True)
        mine = trainer._get_per_token_logps_and_entropies(*given)
        for found, expected in zip(mine[:2], theirs(trainer, *given)[:2], strict=True):
            torch.testing.assert_close(found, expected * part["completion_mask"], rtol=1e-4, atol=1e-5)
            assert found.abs().sum() > 0


def plain_divergence(student: Any, teacher: Any, inputs: dict[str, Any], divergence: str) -> torch.Tensor:
    """The mean over what counts, written down as plainly as it can be."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    width = max(tiny_tokenizer().get_vocab().values()) + 1
    mine, theirs = (
        model(input_ids=ids, attention_mask=mask).logits[:, 1:-1, :width].log_softmax(-1)
        for model in (student, teacher)
    )
    p, q = (theirs, mine) if divergence == "forward" else (mine, theirs)
    return ((p.exp() * (p - q)).sum(-1) * inputs["completion_mask"]).sum() / inputs["num_items_in_batch"]


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_the_teachers_distributions_count_on_the_students_tokens(divergence: str, tmp_path: Path) -> None:
    inputs = micro_batch([0.0, 0.0])
    trainer = built(tmp_path, kd_weight=2.0, divergence=divergence)
    loss = trainer._compute_loss(trainer.model, inputs)
    expected = 2 * plain_divergence(trainer.model, trainer._distilled.teacher, inputs, divergence)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    name = "model.layers.1.mlp.up_proj.weight"
    [mine] = torch.autograd.grad(loss, [trainer.model.get_parameter(name)])
    [theirs] = torch.autograd.grad(expected, [trainer.model.get_parameter(name)])
    assert theirs.abs().max() > 0
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-7)
    trainer.log({"loss": 0.0})
    assert trainer.state.log_history[-1]["distillation/divergence"] == pytest.approx(expected.item() / 2, rel=1e-4)


def test_it_is_added_to_what_the_rewards_say(tmp_path: Path) -> None:
    inputs = micro_batch([1.0, -1.0])
    plain = built(tmp_path)
    alone = plain._compute_loss(plain.model, dict(inputs)).item()
    trainer = built(tmp_path, kd_weight=0.5)
    divergence = plain_divergence(trainer.model, trainer._distilled.teacher, inputs, "reverse").item()
    both = trainer._compute_loss(trainer.model, dict(inputs)).item()
    assert alone != 0
    assert both == pytest.approx(alone + 0.5 * divergence, rel=1e-4)


def test_trls_own_kl_is_taken_to_the_teacher(tmp_path: Path) -> None:
    trainer = built(tmp_path, beta=0.1)
    assert trainer.beta == 0.1
    inputs = micro_batch([0.0, 0.0])
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    scored = trainer._get_per_token_logps_and_entropies(trainer.ref_model, ids, mask, 3)[0]
    plain = tiny_model(seed=1)(input_ids=ids, attention_mask=mask).logits[:, 1:-1].log_softmax(-1)
    there = inputs["completion_mask"].bool()
    torch.testing.assert_close(scored[there], plain.gather(-1, ids[:, 2:, None])[..., 0][there], rtol=1e-4, atol=1e-5)
    loss = trainer._compute_loss(trainer.model, inputs | {"ref_per_token_logps": scored.detach()})
    assert loss.item() > 0  # the estimate is never negative


class Asked(Sums):
    """Prompts alone."""

    def rows(self, split: Any, seed: int) -> Any:
        return ({"prompt": row["prompt"]} for row in super().rows(split, seed))


@pytest.mark.slow
def test_training_with_a_teacher_brings_the_student_nearer_to_it(tmp_path: Path) -> None:
    """By its own completions alone: nobody judges them, and there are no answers."""
    write_start(tmp_path)
    keys: dict[str, Any] = {"batch": 8, "generations": 2, "steps": 8, "max_tokens": 64, "max_completion_tokens": 12}
    keys |= {"lr": 1e-5, "scale_lr": 1e-2, "schedule": "constant", "rewards": {"correct": 0.0}}
    job, step = train_step(tmp_path, "grpo", source=Asked(4), kd_weight=1.0, **keys)
    del step.parts["task"]
    train.run(job, step)
    log = [json.loads(line) for line in (job.workdir(step) / "training.jsonl").read_text().splitlines()]
    seen = [line["distillation/divergence"] for line in log]
    assert len(seen) == 8
    assert not any(name.startswith("reward") for name in log[0])
    assert sum(seen[-3:]) < 0.9 * sum(seen[:3]), seen


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
