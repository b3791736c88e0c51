"""GRPO of a model that nothing has quantized, by TRL alone: how much of a recipe's gain any training would bring.

python -m tests.peers.grpo_by_trl MODEL gsm8k/train.jsonl.gz -o OUT --steps 60    # ended, it goes on
rqat eval gsm8k OUT --greedy

Prompts, grader, completions a step, their lengths and the schedule are those of qwen2.5-coder-1.5b-w2g128; all weights
are trained, in float32 under bfloat16's autocast. Completions are written by transformers, so a step takes several
times what rqat's does. With --at-once 2 they are written for two steps together, in little more time than for one; TRL
then weighs them by the ratio to the model that wrote them, one step ago at most.

With --engine rqat's engine writes them, for TRL's trainer as `rqat qat` has it, in a tenth of the time: weights are
bfloat16 then, with masters of float32 that the optimizer moves, and embedding and head stay as they are. Such a run
keeps no checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from rqat.text_files import read_text
from rqat_math import INSTRUCTION


def problems(path: Path, seed: int) -> list[dict[str, Any]]:
    """`prompt`, as messages, and `answer`, in an order of chance."""
    rows = [json.loads(line) for line in read_text(path).rstrip("\n").split("\n")]
    random.Random(seed).shuffle(rows)
    return [
        {
            "prompt": [{"role": "user", "content": f"{row['question']}\n\n{INSTRUCTION}"}],
            "answer": row["answer"].rsplit("####", 1)[1].strip(),
        }
        for row in rows
    ]


def correct(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float | None]:
    """1 for what the grader of evaluations calls correct."""
    from rqat.evals.grade import grade

    return [
        float(grade(each[0]["content"], right) == "correct") for each, right in zip(completions, answer, strict=True)
    ]


def with_engine(options: argparse.Namespace, given: dict[str, Any]) -> Any:
    """The trainer whose completions rqat writes, and an optimizer that has no quantized layer to look after."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from rqat.keys import ModelKeys
    from rqat.model.load import load_model
    from rqat.train.optimizer import QuantizedOptimizer
    from rqat.train.rollouts import Rollouts
    from rqat_grpo.rollouts import Trainer

    tokenizer = given["processing_class"]

    def tokens(row: dict[str, Any]) -> dict[str, list[int]]:
        text = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        return {"prompt_ids": tokenizer(text, add_special_tokens=False).input_ids}

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(ModelKeys(path=str(options.model)), device=device)
    rollouts = Rollouts(model, tokenizer, limit=options.new, seed=options.seed)
    optimizer = QuantizedOptimizer(model, {}, lr=None, other_lr=options.lr)
    schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 10, options.steps)
    given["train_dataset"] = given["train_dataset"].map(tokens)
    return Trainer(rollouts=rollouts, model=model, optimizers=(optimizer, schedule), **given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder")
    parser.add_argument("data", type=Path, help="GSM8K's training problems")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--completions", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=1, help="steps whose completions are written together")
    parser.add_argument("--engine", action="store_true", help="completions by rqat's engine")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--new", type=int, default=512, help="tokens a completion may have")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=int, default=20, help="steps between checkpoints")
    options = parser.parse_args()

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    gpu = torch.cuda.is_available()
    config = GRPOConfig(
        output_dir=str(options.out / "training"), max_steps=options.steps, learning_rate=options.lr, seed=options.seed,
        per_device_train_batch_size=options.micro_batch, num_generations=8,
        gradient_accumulation_steps=options.completions // options.micro_batch,
        generation_batch_size=options.completions * options.at_once,
        max_completion_length=options.new, temperature=1.0, beta=0.0,
        lr_scheduler_type="cosine", warmup_steps=options.steps // 10, bf16=gpu and not options.engine,
        use_cpu=not gpu, gradient_checkpointing=False, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no" if options.engine else "steps", save_steps=options.save, save_total_limit=1,
    )  # fmt: skip
    rows = Dataset.from_list(problems(options.data, options.seed))
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    given: dict[str, Any] = {
        "processing_class": tokenizer, "args": config, "reward_funcs": [correct], "train_dataset": rows,
    }  # fmt: skip
    if options.engine:
        trainer = with_engine(options, given)
    else:
        trainer = GRPOTrainer(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32), **given)
    trainer.train(resume_from_checkpoint=any(options.out.glob("training/checkpoint-*")) or None)
    trainer.model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "steps.json").write_text(json.dumps(trainer.state.log_history, indent=1))


if __name__ == "__main__":
    main()
