"""The distillation objective: its loss is the divergence it says, over the positions it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rqat.contracts import Context, Training
from rqat.errors import ModelError
from rqat.train.data import prepare_rows
from rqat_kd import Options
from rqat_kd.objective import Distillation, DistillationTrainer
from rqat_kernels.divergences import DIVERGENCES
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import Sums


def built(
    tmp_path: Path, teacher_seed: int = 1, teacher_shape: dict[str, int] | None = None, **options: Any
) -> DistillationTrainer:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], lr=0.1)
    arguments = {
        "output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    training = Training(
        model=model,
        tokenizer=tokenizer,
        rows=prepare_rows(Sums().rows("train", 0), tokenizer, steps=2, batch=4, max_tokens=64, seed=0).rows,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        arguments=arguments,
        max_tokens=64,
        teacher=tiny_model(teacher_seed, **(teacher_shape or {})).requires_grad_(False),
    )
    return Distillation(Options(**options)).build_trainer(training)  # type: ignore[return-value]


def batch_of(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return dict(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("positions", ["completion", "all"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.25])
@pytest.mark.parametrize("shape", [{}, {"hidden": 64, "vocab": 160}, {"vocab": 96}])
def test_loss_and_gradient_are_those_of_whole_logits(
    tmp_path: Path, positions: str, sft_weight: float, shape: dict[str, int]
) -> None:
    """With padding masked out in the reference, although the objective passes no mask. Tolerance: float32 sums.

    The student's vocabulary is padded from 96 tokens to 128, the teacher's to 128, to 160, or not at all.
    """
    trainer = built(tmp_path, teacher_shape=shape, positions=positions, sft_weight=sft_weight, temperature=2.0)
    inputs = batch_of(trainer)
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()

    common = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    plain, teacher, tokens = tiny_model(), tiny_model(1, **shape), len(tiny_tokenizer())
    assert tokens == 96
    logits = plain(**common).logits[:, :-1, :tokens]
    theirs = teacher(**common).logits[:, :-1, :tokens].detach()
    shown = inputs["attention_mask"][:, 1:].bool()
    counted = shown if positions == "all" else inputs["labels"][:, 1:] != -100
    assert counted.sum() < shown.numel()
    p, log_q = torch.softmax(theirs[counted] / 2, -1), torch.log_softmax(logits[counted] / 2, -1)
    kl = 4 * (p * (p.log() - log_q)).sum(-1).mean()
    ce = torch.nn.functional.cross_entropy(logits[counted], inputs["input_ids"][:, 1:][counted])
    expected = (1 - sft_weight) * kl + sft_weight * ce
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=1e-6)
    norms = [name for name in gradients if "norm" in name]
    assert norms
    for name in norms:
        torch.testing.assert_close(gradients[name], plain.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_teacher_itself_has_nothing_to_learn(tmp_path: Path, divergence: str) -> None:
    trainer = built(tmp_path, teacher_seed=0, divergence=divergence)
    loss = trainer.compute_loss(trainer.model, batch_of(trainer))
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad is not None and p.grad.any() for p in trainer.model.parameters())


def test_the_teacher_is_not_trained(tmp_path: Path) -> None:
    trainer = built(tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.teacher.state_dict().items())
    assert not trainer.teacher.training


def test_needs_a_teacher_and_plain_heads(tmp_path: Path) -> None:
    trainer = built(tmp_path)
    training = Training(trainer.model, trainer.processing_class, None, None, None, {}, 64)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="needs a teacher"):
        Distillation(Options()).build_trainer(training)
    training.teacher = tiny_model()
    training.teacher.config.final_logit_softcapping = 30.0
    with pytest.raises(ModelError, match="final_logit_softcapping"):
        Distillation(Options()).build_trainer(training)


@pytest.mark.parametrize(
    "wrong", [{"divergence": "kl"}, {"beta": 1.0}, {"temperature": 0}, {"sft_weight": 2}, {"tau": 1}]
)
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_what_a_divergence_without_a_kernel_costs_is_told() -> None:
    (note,) = Options(divergence="skew").check(Context())
    assert (note.level, note.key, "plain torch" in note.text) == ("note", "divergence", True)
    assert not list(Options(divergence="jsd").check(Context()))
