"""The SFT objective: TRL's trainer on rows that are tokenized already; nothing is changed or cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rqat.contracts import Options, Training
from rqat.train.data import prepare_rows
from rqat_sft import Sft
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training import Sums


def test_is_the_cross_entropy_of_the_completions(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = prepare_rows(Sums().rows("train", 0), tokenizer, steps=1, batch=4, max_tokens=64, seed=0).rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {
        "output_dir": str(tmp_path), "max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    trainer = Sft(Options()).build_trainer(
        Training(model, tokenizer, rows, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), arguments, 64)
    )
    assert trainer.train_dataset["input_ids"][:] == rows["input_ids"][:]
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    made = model.lm_head.register_forward_hook(lambda *_: pytest.fail("logits of all tokens: the estimate has none"))
    loss = trainer.compute_loss(trainer.model, dict(inputs))
    made.remove()
    logits = tiny_model()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
