"""What the files of a teacher say before it is loaded: whether a model can learn from it. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..contracts import Problem
from ..errors import ModelError, RqatError
from ..figures import size
from ..keys import ModelKeys
from .config import ModelConfig, read_config
from .hub import QUANTIZED_FILE
from .vocabulary import check_vocabularies


def teacher_problems(
    teacher: ModelKeys, student: ModelConfig | None, max_tokens: int, *, offline: bool
) -> Iterator[Problem]:
    """What stands against a teacher, or is good to know of it: its files, its tokens, its context.

    Args:
        student: None where its files cannot be read, which others tell.
        max_tokens: of a training row.
    """
    path = teacher.path
    try:
        config = read_config(teacher, offline=offline)
        if config.folder is not None and (config.folder / QUANTIZED_FILE).is_file():
            raise ModelError(f"'{path}' is a step of a run.", hint="Name the folder of an exported model.")
        theirs = config.vocabulary(offline=offline)
    except RqatError as error:
        yield Problem(error.message, error.hint)
        return
    try:
        mine = student.vocabulary(offline=offline) if student else None
    except RqatError:
        mine = None  # which loading the model reports
    if theirs is not None and mine is not None:
        try:
            check_vocabularies(theirs, mine)
        except RqatError as error:
            yield Problem(f"'{path}': {error.message}", error.hint)
    if config.context is not None and max_tokens > config.context:
        text = f"max_tokens is {max_tokens}, but the teacher's context is {config.context}."
        yield Problem(text, f"Use at most {config.context}.")
    if config.quantization is not None:
        method = config.quantization.get("quant_method", "an unknown method")
        fix = "What quantization cost it, the student learns too; distil from 16 or 32 bits if you can."
        yield Problem(f"'{path}' is quantized itself ({method}).", fix, level="warning")
    if config.folder is None:
        yield Problem(f"'{path}' will be fetched from the hub, {size(config.bytes)}.", level="note")
