"""The teacher: the model as it was before quantization, or another one with its tokens, frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..keys import ModelKeys
from ..model.load import load_model
from ..model.original import Original
from ..model.vocabulary import check_vocabularies

if TYPE_CHECKING:
    import transformers


def scaled_logits(model: transformers.PreTrainedModel) -> list[str]:
    """Entries of a model's config by which its logits are more than its head makes of its last hidden states."""
    config = model.config.get_text_config()
    entries = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return [name for name in entries if getattr(config, name, None) not in (None, 1, 1.0)]


def check_linear_head(model: transformers.PreTrainedModel) -> None:
    """Refuses a model whose logits cannot be had from its last hidden states and its head's weight alone.

    For objectives that compare distributions without ever holding all logits (`rqat_kernels.linear_kl`).

    Raises:
        ModelError: its logits are scaled or capped, or its head has a bias.
    """
    found = scaled_logits(model)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        found.append("a bias of lm_head")
    if found:
        raise ModelError(
            f"{type(model).__name__} has {', '.join(found)}: its logits are not hidden states times head weights.",
            hint="Train with objective: sft, or name another teacher.",
        )


def load_teacher(
    keys: ModelKeys,
    student_tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    device: str = "cpu",
    offline: bool = False,
    original: Original | None = None,
) -> transformers.PreTrainedModel:
    """Loads a teacher: in eval mode, no parameter with a gradient, on `device`.

    Args:
        original: keeps the model before quantization, where that is the teacher.

    Raises:
        ModelError: its tokens are not the student's. Logits may be wider than there are tokens, and of another width
            than the student's.
    """
    if original is not None:
        teacher, tokenizer = original.get(keys, device=device, offline=offline)
    else:
        teacher, tokenizer = load_model(keys, device=device, offline=offline, quantizable=False)
    check_vocabularies(tokenizer.get_vocab(), student_tokenizer.get_vocab())
    return teacher.requires_grad_(False)
