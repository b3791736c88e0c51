"""Sampling completions from a model: for the cold-start gate, and to compare sampler and trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ModelError
from .data import encode_prompts

if TYPE_CHECKING:
    import transformers

    from ..evals.generate import Writer


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        text: without special tokens.
        tokens: number of tokens, the end token included.
        ended: it wrote its end token.
    """

    text: str
    tokens: int
    ended: bool


@torch.no_grad()
def sample(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    batch: int = 32,
    advance: Callable[[int], None] = lambda done: None,
    writer: Writer | None = None,
) -> list[list[Completion]]:
    """`samples` completions of each prompt, in the order of the prompts, drawn with torch's global random state.

    Args:
        batch: completions generated at once.
        advance: called with the number of prompts done.
        writer: writes in place of the model's own `generate`, all prompts in one call: it finds room by itself.

    Raises:
        ModelError: the writer is out of memory.
    """
    per_call = max(1, batch // samples)
    generate: Any = model.generate
    result: list[list[Completion]] = []
    ends = end_tokens(model, tokenizer)
    if writer is not None:
        asked = [ids for ids in encode_prompts(tokenizer, prompts) for _ in range(samples)]
        try:
            rows = writer.write(
                asked,
                max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                ends=frozenset(ends),
                tell=lambda done, tokens: advance(done // samples),
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"Out of memory while sampling completions of up to {max_new_tokens} tokens.",
                hint="Lower max_completion_tokens or max_tokens.",
            ) from error
        completions = [_completion(tokenizer, row, ends) for row in rows]
        advance(len(prompts))
        return [completions[i : i + samples] for i in range(0, len(completions), samples)]
    config = _config(tokenizer, ends, max_new_tokens, temperature, top_p)
    config.num_return_sequences = samples
    for start in range(0, len(prompts), per_call):
        ids, mask = padded(tokenizer, prompts[start : start + per_call], model.device)
        written = generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
        )[:, ids.shape[1] :]
        completions = [_completion(tokenizer, row.tolist(), ends) for row in written]
        result += [completions[i : i + samples] for i in range(0, len(completions), samples)]
        advance(len(result))
    return result


@torch.no_grad()
def sampler_gap(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens: int = 32,
) -> float:
    """Largest difference, in nats, between a sampled token's log-probability while generating and while training.

    Generation uses a cache and pads on the left, training does neither; a difference means that what is learned is not
    what was sampled.
    """
    ids, mask = padded(tokenizer, prompts, model.device)
    ends = end_tokens(model, tokenizer)
    config = _config(tokenizer, ends, tokens, 1.0, 1.0)
    config.output_logits = config.return_dict_in_generate = True
    generate: Any = model.generate
    output = generate(input_ids=ids, attention_mask=mask, generation_config=config)
    written = output.sequences[:, ids.shape[1] :]
    sampled = torch.stack(output.logits, 1).float().log_softmax(-1).gather(-1, written[..., None]).squeeze(-1)
    worst = 0.0
    for row in range(len(ids)):
        prompt = ids[row][mask[row].bool()]
        length = _length(written[row].tolist(), ends)
        whole = torch.cat([prompt, written[row, :length]])[None]
        logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        trained = logits.log_softmax(-1).gather(-1, written[row, :length, None]).squeeze(-1)
        worst = max(worst, float((trained - sampled[row, :length]).abs().max()))
    return worst


def end_tokens(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: the tokenizer's, and those of the model's generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *listed] if token is not None})


def padded(
    tokenizer: transformers.PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and mask `(B, T)` of prompts, padded on the left."""
    encoded = encode_prompts(tokenizer, prompts)
    longest = max(map(len, encoded))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in encoded], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded], device=device)
    return ids, mask


def _config(tokenizer: Any, ends: list[int], tokens: int, temperature: float, top_p: float) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        repetition_penalty=1.0,  # left out, it would be the checkpoint's own
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=ends,
        use_cache=True,
        disable_compile=True,
    )


def _length(ids: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to and with the first end token."""
    return next((index + 1 for index, token in enumerate(ids) if token in ends), len(ids))


def _completion(tokenizer: Any, ids: list[int], ends: Sequence[int]) -> Completion:
    length = _length(ids, ends)
    return Completion(
        tokenizer.decode(ids[:length], skip_special_tokens=True), length, bool(length) and ids[length - 1] in ends
    )
