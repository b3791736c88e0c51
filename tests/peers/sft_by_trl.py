"""A step of plain TRL SFT on the rows that rqat distils on, with Liger's fused loss: what a step costs without rqat.

python -m tests.peers.sft_by_trl MODEL rows.jsonl.gz --steps 12 --batch 32 --micro-batch 32    # or --no-liger
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rqat.text_files import read_text


def rows_of(path: Path, count: int) -> list[dict[str, Any]]:
    """The first rows, as TRL wants them: `prompt` and `completion` as messages."""
    found = [json.loads(line) for line in read_text(path).rstrip("\n").split("\n")[:count]]
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
        for row in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder")
    parser.add_argument("data", type=Path, help="rows with `prompt` and `completion`")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=768)
    parser.add_argument("--liger", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    seconds: list[float] = []

    class Steps(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds.append(now() - self.begun)

    def now() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=options.steps, learning_rate=1e-6, max_length=options.max_tokens,
            per_device_train_batch_size=options.micro_batch, use_liger_kernel=options.liger,
            gradient_accumulation_steps=options.batch // options.micro_batch, gradient_checkpointing=False,
            bf16=False, use_cpu=not gpu, save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer: Any = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16),
            processing_class=AutoTokenizer.from_pretrained(options.model), args=config,
            train_dataset=Dataset.from_list(rows_of(options.data, options.steps * options.batch)),
        )  # fmt: skip
        trainer.add_callback(Steps())
        trainer.train()
    tokens = trainer.state.log_history[-2]["num_tokens"] / options.steps
    median = statistics.median(seconds[3:] or seconds)
    peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0
    print(
        f"first {seconds[0]:.2f} s, then {median:.3f} s in the median, {tokens:.0f} tokens a step, "
        f"{tokens / median:.0f} tokens/s, {peak:.1f} GB"
    )


if __name__ == "__main__":
    main()
