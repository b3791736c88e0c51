"""The teacher: the model as it was before quantization, frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelError
from ..keys import ModelKeys
from ..model.load import load_model

if TYPE_CHECKING:
    import transformers


def load_teacher(
    keys: ModelKeys,
    student_tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    device: str = "cpu",
    offline: bool = False,
) -> transformers.PreTrainedModel:
    """Loads the model before quantization: in eval mode, no parameter with a gradient, on `device`.

    Raises:
        ModelError: its tokens are not the student's.
    """
    teacher, tokenizer = load_model(keys, device=device, offline=offline, quantizable=False)
    check_vocabularies(tokenizer, student_tokenizer)
    return teacher.requires_grad_(False)


def check_vocabularies(
    teacher: transformers.PreTrainedTokenizerBase, student: transformers.PreTrainedTokenizerBase
) -> None:
    """Refuses a teacher whose token ids mean something else: distributions could not be compared.

    Raises:
        ModelError: names the first token that differs.
    """
    theirs, mine = teacher.get_vocab(), student.get_vocab()
    if theirs == mine:
        return
    different = min((token for token in theirs.keys() | mine.keys() if theirs.get(token) != mine.get(token)), key=str)
    raise ModelError(
        f"teacher and student have different vocabularies: token {different!r} is {theirs.get(different)} for the "
        f"teacher and {mine.get(different)} for the student.",
        hint="Distil from the model that was quantized.",
    )
