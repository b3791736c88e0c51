"""Which token has which id, read from tokenizer files alone: without torch and transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Ids by token, added tokens included; None when the folder's tokenizer is in a format not read here (`*.model`).

    Raises:
        ModelError: a file is damaged.
    """
    whole, plain = folder / "tokenizer.json", folder / "vocab.json"
    if whole.is_file():
        data = _read(whole)
        try:
            vocabulary = data["model"]["vocab"]
            if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
                vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
            found = vocabulary | {added["content"]: added["id"] for added in data.get("added_tokens") or ()}
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(whole) from error
    elif plain.is_file():
        found = _read(plain)
    else:
        return None
    more = _read(folder / "added_tokens.json")
    declared = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    try:
        more |= {token["content"]: int(index) for index, token in declared.items()}
        merged: dict[str, int] = more | found
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "tokenizer_config.json") from error
    if not all(type(index) is int for index in merged.values()):
        raise _damaged(whole if whole.is_file() else plain)
    return merged


def past_the_embedding(path: str, vocabulary: Mapping[str, int], rows: int) -> ModelError:
    """The error for a tokenizer with ids that an embedding of so many rows has no row for."""
    beyond = sorted(
        (token for token, index in vocabulary.items() if index >= rows), key=lambda token: vocabulary[token]
    )
    few = len(beyond) <= 16
    named = ", ".join(f"{token!r} ({vocabulary[token]})" for token in beyond[:3]) + (" ..." if len(beyond) > 3 else "")
    hint = (
        "Tokens were added and the embedding was not: take them out of the tokenizer (the end token can pad), "
        "or call model.resize_token_embeddings(len(tokenizer)) and save both."
        if few
        else "The tokenizer belongs to another model; put the right one beside the weights."
    )
    return ModelError(
        f"The tokenizer of '{path}' has {len(beyond)} tokens past the model's vocabulary, which ends at {rows - 1}: "
        f"{named}.",
        hint=hint,
    )


TEACHER = ("teacher", "student")
ORIGINAL = ("original", "model")

OTHERWISE = {
    TEACHER: "Distil from a model with the student's tokenizer; leave `teacher` out for the model before quantization.",
    ORIGINAL: "Compare it with what it was made from, or with a model that has the same tokenizer.",
}
"""What to do where two models have different tokens, by what they are called."""


def check_vocabularies(
    teacher: Mapping[str, int], student: Mapping[str, int], called: tuple[str, str] = TEACHER
) -> None:
    """Refuses a teacher whose token ids mean something else: distributions could not be compared.

    Args:
        called: what the two are, see `OTHERWISE`.

    Raises:
        ModelError: gives both sizes and the first token that differs.
    """
    if teacher == student:
        return
    wrong = [token for token in teacher.keys() | student.keys() if teacher.get(token) != student.get(token)]
    first = min(wrong, key=lambda token: (student.get(token, len(student)), token))
    theirs, mine = teacher.get(first, "missing"), student.get(first, "missing")
    other, own = called
    raise ModelError(
        f"{other} and {own} have different vocabularies, of {len(teacher)} and {len(student)} tokens: "
        f"token {first!r} is {theirs} for the {other} and {mine} for the {own}.",
        hint=OTHERWISE[called],
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON mapping; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(data, dict):
        raise _damaged(path)
    return data


def _damaged(path: Path) -> ModelError:
    return ModelError(f"'{path}' is damaged.", hint="Fetch the model again.")
