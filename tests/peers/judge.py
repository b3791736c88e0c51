"""How far a quantized model is from its original, and how well it predicts: everybody's weights in one evaluation.

A peer's file is dequantized as rqat imports it, put into the same Hugging Face model, and run in float32, as ours is.
What the original's last layer puts out is kept, so that it runs once and not once for every cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PIECE = 256
"""Positions whose logits exist at once."""

ANSWER = 512
"""Most tokens of an answer to one of GSM8K's problems."""

Rows = Mapping[str, list[list[int]]]


def original_states(original: Any, rows: Rows, kept: Path) -> dict[str, Tensor]:
    """Hidden states `(N, T, d)` before the original's head by domain, computed once and kept in a file."""
    if not kept.exists():
        found = {domain: states(original, ids).cpu() for domain, ids in rows.items()}
        save_file(found, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").rename(kept)
    return {domain: each.to(original.device) for domain, each in load_file(kept).items()}


@torch.no_grad()
def judged(whole: Any, mine: Any | None, rows: Rows, kept: Path) -> dict[str, float]:
    """`kl_in`, `perplexity_in`, `kl_out`, `perplexity_out` of a model in float32.

    KL is the mean of KL(original || quantized) over the positions that predict a token, in nats.

    Args:
        whole: the original.
        mine: what is judged, on the same device; None is the original itself.
        rows: token ids by domain.
        kept: the file of `original_states`.
    """
    original = original_states(whole, rows, kept)
    head = whole.get_output_embeddings().weight
    heads = [head if mine is None else mine.get_output_embeddings().weight, head]
    found = {}
    for domain, ids in rows.items():
        own = original[domain] if mine is None else states(mine, ids)
        sums = [_sums((own[i], original[domain][i]), heads, row) for i, row in enumerate(ids)]
        count = sum(len(row) - 1 for row in ids)
        surprise = sum(each for _, each in sums) / count
        found[f"kl_{domain}"] = sum(each for each, _ in sums) / count
        found[f"perplexity_{domain}"] = math.exp(min(surprise, 700.0))
    return found


def _sums(hidden: tuple[Tensor, Tensor], heads: Sequence[Tensor], ids: list[int]) -> tuple[float, float]:
    """Sums of divergence and of negative log-likelihood over a row's positions that predict a token.

    Args:
        hidden: `(T, d)` before the head, of the model and of its original; `heads` likewise, `(V, d)`.
    """
    divergence = surprise = 0.0
    for start in range(0, len(ids) - 1, PIECE):
        stop = min(start + PIECE, len(ids) - 1)
        log_q, log_p = ((each[start:stop] @ head.T).log_softmax(-1) for each, head in zip(hidden, heads, strict=True))
        divergence += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
        following = torch.tensor(ids[start + 1 : stop + 1], device=log_q.device)[:, None]
        surprise -= float(log_q.gather(-1, following).double().sum())
    return divergence, surprise


@torch.no_grad()
def states(model: Any, ids: list[list[int]]) -> Tensor:
    """What the head reads, `(N, T, d)` float32."""
    batches = (torch.tensor([row], device=model.device) for row in ids)
    return torch.cat([model.base_model(input_ids=batch, use_cache=False)[0] for batch in batches])


def solved(model: Any, folder: Path, problems: int) -> float:
    """Share of GSM8K's first test problems that a model answers rightly, greedily, in bfloat16, which it stays in.

    Args:
        folder: of the tokenizer.
    """
    import transformers

    import rqat

    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = model.to(torch.bfloat16)
    greedy: dict[str, Any] = {"temperature": 0.0, "seeds": (0,), "max_new_tokens": ANSWER}
    found = rqat.evaluate(model, "gsm8k", tokenizer=words, limit=problems, batch=problems, **greedy)
    return float(found.results["accuracy"])


def loaded(model: Path, device: str = "cpu") -> Any:
    """The original, float32."""
    import transformers

    read: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return read.to(device).eval().requires_grad_(False)


def dequantized(folder: Path, bits: int, group: int, device: str = "cpu") -> Any:
    """A quantized checkpoint, ours or a peer's, as an ordinary model with the weights that its codes mean.

    Raises:
        ValueError: a group of a layer's weights has more values than codes of so many bits.
    """
    from rqat.model.checkpoint import load_checkpoint
    from rqat.model.config import quantization_in
    from rqat.model.foreign_layers import load_foreign
    from rqat.model.hub import QUANTIZED_FILE
    from rqat.registry import Registry
    from rqat.storage import read_json

    Registry.current()
    if (folder / QUANTIZED_FILE).exists():
        model: Any = load_checkpoint(folder).model
    elif quantization_in(read_json(folder / "config.json")):
        model = load_foreign(folder).model
    else:
        model = loaded(folder)
    model = model.to(device, torch.float32).eval().requires_grad_(False)
    check_levels(model, bits, group)
    return model


def check_levels(model: torch.nn.Module, bits: int, group: int) -> None:
    """Refuses a model in whose decoder blocks a layer is not quantized: every group has `2**bits` values at most."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            ordered = module.weight.detach().reshape(-1, group).sort(1).values
            most = 1 + int((ordered.diff(dim=1) > 0).sum(1).max())
            if most > 2**bits:
                raise ValueError(f"{name} has {most} values in a group of {group}: it is not quantized to {bits} bits.")
