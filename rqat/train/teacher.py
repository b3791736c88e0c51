"""The teacher: the model as it was before quantization, or another one with its tokens, frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..keys import ModelKeys
from ..model.load import load_model
from ..model.vocabulary import check_vocabularies

if TYPE_CHECKING:
    import transformers


def load_teacher(
    keys: ModelKeys,
    student_tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    device: str = "cpu",
    offline: bool = False,
) -> transformers.PreTrainedModel:
    """Loads a teacher: in eval mode, no parameter with a gradient, on `device`.

    Raises:
        ModelError: its tokens are not the student's. Logits may be wider than there are tokens, and of another width
            than the student's.
    """
    teacher, tokenizer = load_model(keys, device=device, offline=offline, quantizable=False)
    check_vocabularies(tokenizer.get_vocab(), student_tokenizer.get_vocab())
    return teacher.requires_grad_(False)
