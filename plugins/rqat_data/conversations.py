"""Conversations as people keep them: messages, ShareGPT, and TRL's prompts and completions made of messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rqat

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""A row's roles, by what files call them."""

SHAPE = 'Every turn is {"role": "user", "content": "..."}, or {"from": "human", "value": "..."}.'


def turns_of(found: Any, name: str, place: Callable[[], str], *, asks: bool = True) -> list[rqat.Message]:
    """The turns in a record's field `name`: OpenAI's messages or ShareGPT's conversation.

    Args:
        asks: one of them has to be the user's.

    Raises:
        DataError: it is neither, or holds turns that a chat template of text cannot take.
    """
    if isinstance(found, str) or not isinstance(found, Sequence) or not found:
        what = "empty" if isinstance(found, Sequence) and not found else f"{type(found).__name__}"
        raise rqat.DataError(f"{place()}: the field '{name}' is not a list of turns but {what}.", hint=SHAPE)
    turns = [_turn(turn, lambda n=number: f"{place()}: turn {n} of '{name}'") for number, turn in enumerate(found, 1)]  # type: ignore[misc]
    if asks and not any(turn["role"] == "user" for turn in turns):
        raise rqat.DataError(f"{place()}: no turn of '{name}' is the user's.", hint=SHAPE)
    return turns


def opened(turns: list[rqat.Message], system: str | None) -> list[rqat.Message]:
    """The turns behind a system prompt, if there is one; their own comes first."""
    if not system or turns[0]["role"] == "system":
        return turns
    return [rqat.Message(role="system", content=system), *turns]


def pieces(turns: list[rqat.Message], which: str) -> list[list[rqat.Message]]:
    """The conversations that rows are made of: the whole, or one up to every turn of the assistant that follows one.

    Args:
        which: "last" or "all".
    """
    if which == "last":
        return [turns]
    asked = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
    ends = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and index > asked]
    return [turns[: index + 1] for index in ends] or [turns]


def first_question(turns: Sequence[rqat.Message]) -> str:
    """What a conversation begins with; decides its split."""
    return next((turn["content"] for turn in turns if turn["role"] == "user"), "")


def _turn(turn: Any, place: Callable[[], str]) -> rqat.Message:
    if not isinstance(turn, Mapping):
        raise rqat.DataError(f"{place()} is {type(turn).__name__}.", hint=SHAPE)
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(str(said).lower())
    if role is None:
        raise rqat.DataError(
            f"{place()} is by {said!r}; read are turns by {', '.join(ROLES)}.",
            hint="Leave such conversations out, or write what was said there into a turn of the user.",
        )
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        what = (
            "null"
            if content is None
            else "parts that are no text"
            if isinstance(content, list)
            else type(content).__name__
        )
        raise rqat.DataError(f"{place()}: its content is {what}.", hint=SHAPE)
    rqat.refuse_half_pairs(content, place, " of its content")
    return rqat.Message(role=role, content=content)
