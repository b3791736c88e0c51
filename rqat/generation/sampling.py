"""How tokens are chosen and what ends a completion: rqat's settings alone, never a checkpoint's.

A checkpoint's generation_config.json may hold a temperature, penalties or tokens that are never to be written.
transformers fills in every setting that is not named from it, so two models would be compared under different rules.
Of all that, only its end tokens count here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..model.extras import NO_SAMPLING

if TYPE_CHECKING:
    import transformers

    from .server_writer import ServedModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: tokens after which a completion is cut off.
        temperature: 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`; there is no top-k bound.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


def too_little_room(room: int, asked: int | None) -> str:
    """A sentence where completions have less room than was asked for, else nothing.

    Args:
        room: tokens that may follow the longest prompt.
    """
    if asked is None or room >= asked:
        return ""
    return f"completions end after {room} tokens, all that the longest prompt leaves; {asked} were asked for."


def end_tokens(
    model: transformers.PreTrainedModel | ServedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> frozenset[int]:
    """Tokens that end a completion: the checkpoint's own and the tokenizer's.

    Raises:
        ModelError: there is none.
    """
    ends = {*_own_ends(model), tokenizer.eos_token_id} - {None}
    if not ends:
        raise ModelError("The model has no end token.", hint="Set eos_token_id in its generation_config.json.")
    if not all(isinstance(end, int) for end in ends):
        raise ModelError(f"End tokens have to be ids; the model has {ends}.", hint="Mend its generation_config.json.")
    return frozenset(ends)


def context_length(model: transformers.PreTrainedModel | ServedModel) -> int:
    """Tokens that prompt and completion may have together."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Tokens up to the first end, the end included."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]


def seed_of(*parts: object) -> int:
    """A seed of 48 bits that stands for all of `parts`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:6], "big")


def foreign_settings(model: transformers.PreTrainedModel) -> str:
    """The checkpoint's own generation settings that change what is sampled, as text; "" where there are none."""
    own = getattr(model, "generation_config", None)
    found = {} if own is None else own.to_diff_dict()
    return ", ".join(f"{key} {value}" for key, value in found.items() if key not in NO_SAMPLING)


@contextmanager
def own_settings_hidden(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Hides the checkpoint's own generation settings but its end tokens, for a while.

    Trainers that generate by themselves are built and run under it, too.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=_own_ends(model) or None)
    try:
        yield
    finally:
        model.generation_config = own


def _own_ends(model: transformers.PreTrainedModel | ServedModel) -> list[int]:
    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [end for end in (own if isinstance(own, list) else [own]) if end is not None]
