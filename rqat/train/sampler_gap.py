"""Whether the sampler and the training forward agree on what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..generation.sampling import end_tokens
from ..generation.transformers_writer import TransformersWriter

if TYPE_CHECKING:
    import transformers

    from ..generation.writer import Writer


@torch.no_grad()
def sampler_gap(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 32,
    writer: Writer | None = None,
) -> float:
    """Largest difference, in nats, between a sampled token's log-probability while generating and while training.

    Generation uses a cache and pads on the left, training does neither; a difference means that what is learned is not
    what was sampled.

    Args:
        prompts: token ids.
        writer: what samples; None is transformers.
    """
    writer = writer or TransformersWriter(model, piece=None)
    ends = end_tokens(model, tokenizer)
    worst = 0.0
    for prompt, written in zip(
        prompts, writer.write(prompts, tokens, temperature=1.0, ends=ends, logprobs=True), strict=True
    ):
        assert written.logprobs is not None
        whole = torch.tensor([[*prompt, *written.tokens]], device=model.device)
        logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        chosen = whole[0, len(prompt) :, None]
        trained = logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        sampled = torch.tensor(written.logprobs, device=trained.device)
        worst = max(worst, float((trained - sampled).abs().max()))
    return worst
