"""The teacher: the model as it was before quantization, or another one with its tokens, frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..keys import ModelKeys
from ..model.load import load_model
from ..model.original import Original
from ..model.vocabulary import check_vocabularies

if TYPE_CHECKING:
    import transformers


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
