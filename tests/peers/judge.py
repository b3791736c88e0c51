"""How far a quantized model is from its original, and how well it predicts: everybody's weights in one evaluation.

A peer's file is dequantized as rqat imports it, put into the same Hugging Face model, and run in float32 on the CPU, as
ours is. What the original's last layer puts out is kept, so that it runs once and not once for every cell.
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

Rows = Mapping[str, list[list[int]]]


def original_states(model: Path, rows: Rows, kept: Path) -> dict[str, Tensor]:
    """Hidden states `(N, T, d)` before the original's head by domain, computed once and kept in a file."""
    if not kept.exists():
        found = {domain: states(loaded(model), ids) for domain, ids in rows.items()}
        save_file(found, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").rename(kept)
    return load_file(kept)


@torch.no_grad()
def judged(model: Path, mine: Any | None, rows: Rows, kept: Path) -> dict[str, float]:
    """`kl_in`, `perplexity_in`, `kl_out`, `perplexity_out` of a model on the CPU in float32.

    KL is the mean of KL(original || quantized) over the positions that predict a token, in nats.

    Args:
        model: folder of the original.
        mine: what is judged; None is the original itself.
        rows: token ids by domain.
        kept: the file of `original_states`.
    """
    original = original_states(model, rows, kept)
    head = loaded(model).get_output_embeddings().weight
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
        following = torch.tensor(ids[start + 1 : stop + 1])[:, None]
        surprise -= float(log_q.gather(-1, following).double().sum())
    return divergence, surprise


@torch.no_grad()
def states(model: Any, ids: list[list[int]]) -> Tensor:
    """What the head reads, `(N, T, d)` float32."""
    return torch.cat([model.base_model(input_ids=torch.tensor([row]), use_cache=False)[0] for row in ids])


def loaded(model: Path) -> Any:
    """The original, float32."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)


def dequantized(folder: Path, bits: int, group: int) -> Any:
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
    check_levels(model, bits, group)
    return model.float().eval().requires_grad_(False)


def check_levels(model: torch.nn.Module, bits: int, group: int) -> None:
    """Refuses a model in whose decoder blocks a layer is not quantized: every group has `2**bits` values at most."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            ordered = module.weight.detach().reshape(-1, group).sort(1).values
            most = 1 + int((ordered.diff(dim=1) > 0).sum(1).max())
            if most > 2**bits:
                raise ValueError(f"{name} has {most} values in a group of {group}: it is not quantized to {bits} bits.")
