"""Train the tiny reasoner from scratch: `python -m rqat_arith.pretrain --out DIR --minutes 23`.

A Qwen3 model of about 1.9 million parameters reads endless freshly made problems (none is met twice but by chance) and
learns to write their solutions; the loss is on the solution and the end token. Writes a Hugging Face model folder and
`training_log.json`. The defaults are the settings of the shipped model; its `CARD.md` has the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing as mp
import platform
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from queue import Full
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rqat import IGNORED
from rqat.evals.grade import boxed

from .problems import Problem, problems
from .tokenizer import VOCABULARY, build_tokenizer

WIDTHS = tuple(range(48, 529, 32))
"""Lengths in tokens that batches are padded to. A batch has one length, so that little of it is padding."""
MAX_NEW_TOKENS = 320
"""Longer than any solution of 24 steps."""


def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = build_tokenizer()
    if options.start:
        model = Qwen3ForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    else:
        model = Qwen3ForCausalLM(model_config(options))
    torch.nn.Module.to(model, device)
    history = train(model, options)
    torch.nn.Module.to(model.eval(), torch.bfloat16)
    held_out = list(problems("test", seed=0, steps=(options.test_min, options.test_max), limit=options.test_problems))
    accuracy = evaluate(model, tokenizer, held_out)

    out: Path = options.out
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    log = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "start")},
        "before": json.loads((options.start / "training_log.json").read_text()) if options.start else None,
        "parameters": model.num_parameters(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU",
        "torch": torch.__version__,
        **history,
        "test": {"problems": len(held_out), "steps": [options.test_min, options.test_max], "accuracy": accuracy},
    }
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(f"{out}: {accuracy:.3f} of {len(held_out)} held-out problems solved")


def model_config(options: argparse.Namespace) -> Qwen3Config:
    """All widths are multiples of 128, so that groups of 128 divide every linear layer."""
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )


def train(model: Qwen3ForCausalLM, options: argparse.Namespace) -> dict[str, Any]:
    """Train in place for `options.minutes` (or `options.updates`); returns the seconds, the counts and the losses."""
    device = model.device
    optimizers = _optimizers(model, options)

    curve: list[tuple[int, float]] = []
    step = tokens = 0
    with contextlib.closing(_batches(options)) as batches:
        started = time.monotonic()
        while True:
            done = step / options.updates if options.updates else (time.monotonic() - started) / 60 / options.minutes
            if done >= 1:
                break
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = options.lr * _schedule(done)
            ids, labels = (torch.from_numpy(a).to(device, torch.int64, non_blocking=True) for a in next(batches))
            with torch.autocast(device.type, torch.bfloat16):
                loss = _loss(model, ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += ids.numel()
            if step % options.log_every == 0:
                curve.append((step, round(loss.item(), 5)))
                print(f"step {step}  {done:6.1%}  loss {curve[-1][1]:.5f}", flush=True)
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 1), "steps": step, "tokens_seen": tokens, "loss": curve}


def evaluate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Problem], batch: int = 250
) -> float:
    """Share (0..1) of the problems whose greedy solution ends in the right box."""
    right = 0
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        inputs = tokenizer([p.prompt for p in part], return_tensors="pt", padding=True, return_token_type_ids=False)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model.generate(  # type: ignore[misc]
                **inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        right += sum(boxed(text) == problem.answer for text, problem in zip(texts, part, strict=True))
    return right / len(asked)


def _optimizers(model: Qwen3ForCausalLM, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for all else.

    Measured on chains of 1 to 4 steps: the loss of AdamW after 90 updates (1.58) is one that Muon has passed after 30.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adamw = {"lr": options.lr, "betas": (0.9, 0.98), "weight_decay": 0.0}
    if options.optimizer == "adamw":
        return [
            torch.optim.AdamW(others, **adamw),
            torch.optim.AdamW(matrices, **adamw | {"weight_decay": options.weight_decay}),
        ]
    # `match_rms_adamw` scales Muon's step to the size of AdamW's, so that one learning rate serves both.
    muon = torch.optim.Muon(
        matrices, lr=options.lr, momentum=0.95, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [torch.optim.AdamW(others, **adamw), muon]


def _loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # A mapping is taken as a finished mask: None means plainly causal. Padding stands on the right, where none looks.
    logits = model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _schedule(done: float) -> float:
    """Share of the peak learning rate at `done` (0..1): 2 % warm-up, then half a cosine down to 1 %."""
    return min(done / 0.02 + 0.01, 0.505 + 0.495 * math.cos(math.pi * done))


def _batches(options: argparse.Namespace) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Batches `(ids, labels)`, int16 `(rows, width)`, from processes that make problems in the background."""
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=64)
    stop = context.Event()
    workers = [
        context.Process(target=_produce, args=(queue, stop, worker, options), daemon=True)
        for worker in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    try:
        while True:
            yield queue.get(timeout=120)
    finally:
        stop.set()
        queue.cancel_join_thread()
        for worker in workers:
            worker.terminate()
            worker.join()


def _produce(queue: Any, stop: Any, worker: int, options: argparse.Namespace) -> None:
    tokenizer = build_tokenizer()
    source = problems("train", seed=options.seed * 1000 + worker, steps=(options.train_min, options.train_max))
    shelves: dict[int, list[tuple[list[int], int]]] = {width: [] for width in WIDTHS}
    while not stop.is_set():
        part = [next(source) for _ in range(256)]
        prompts = tokenizer([p.prompt for p in part]).input_ids
        solutions = tokenizer([p.solution + tokenizer.eos_token for p in part]).input_ids
        for prompt, solution in zip(prompts, solutions, strict=True):
            width = next(w for w in WIDTHS if w >= len(prompt) + len(solution))
            shelves[width].append((prompt + solution, len(prompt)))
            if len(shelves[width]) * width >= options.batch_tokens:
                _put(queue, _padded(shelves[width], width), stop.is_set)
                shelves[width].clear()


def _put(queue: Any, item: object, stopped: Callable[[], bool]) -> None:
    while not stopped():
        with contextlib.suppress(Full):
            queue.put(item, timeout=1)
            return


def _padded(rows: Sequence[tuple[list[int], int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(rows), width), dtype=np.int16)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int16)
    for row, (tokens, prompt_length) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        labels[row, prompt_length : len(tokens)] = tokens[prompt_length:]
    return ids, labels


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rqat_arith.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start", type=Path, help="folder of a model to train on, rather than a new one")
    parser.add_argument("--minutes", type=float, default=23.0, help="length of the training")
    parser.add_argument("--updates", type=int, help="optimizer steps, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--batch-tokens", type=int, default=6144, help="tokens a batch, padding counted in")
    parser.add_argument("--train-min", type=int, default=1, help="fewest steps of a training problem")
    parser.add_argument("--train-max", type=int, default=12, help="most steps of a training problem")
    parser.add_argument("--test-min", type=int, default=8)
    parser.add_argument("--test-max", type=int, default=12)
    parser.add_argument("--test-problems", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1, help="processes that make problems")
    parser.add_argument("--log-every", type=int, default=50, help="updates between two lines of the log")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
