"""Rows -> tokens: the one tokenization of prompts and completions.

Evaluation, gate, rollouts, `rqat generate`, training and calibration all come here, so that a model meets a problem in
the same tokens wherever it meets it.

A tokenizer with a chat template gets a prompt as one user turn, behind the row's system prompt; or the row's messages,
of which a last one by the assistant is the completion. A template writes its own start token; without a template the
tokenizer adds its special tokens, of which those behind the text are taken off again: a prompt must not end there.

A completion is put behind the opened turn of the template, not given to it as a message: several templates drop
everything up to `</think>` of a message, which is most of a reasoning trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ..contracts import Message, Row
from ..errors import DataError, ModelError
from ..model.extras import DATE
from ..text_files import refuse_half_pairs

if TYPE_CHECKING:
    import transformers

    Tokenizer = transformers.PreTrainedTokenizerBase

Chat = Literal["auto", "yes", "no"]
"""Whether prompts are wrapped in the tokenizer's chat template; `auto`: if there is one."""

Place = Callable[[int], str]
"""What an error calls the row at an index; it begins the sentence."""

THINK, UNTHINK = "<think>", "</think>"

ASKED = "\ue000"
"""What stands for the user's words where a prompt ends before them: a character that no template has."""

OWN_SETTINGS = {"tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "chat_template"}
"""Settings of a template that are not a row's to choose."""

DAY = datetime(2024, 7, 26)
"""What a template that asks for the day's date is told, so that a prompt is the same on every day; the day that the
templates of Llama 3 take where nobody tells them one."""

PROBE = "1"
"""A text that shows what a tokenizer puts around every text."""

TEMPLATE_HINT = "Mend chat_template.jinja beside the model (or chat_template in its tokenizer_config.json)."


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it: with the chat template, if there is one, and as tokens."""

    text: str
    tokens: tuple[int, ...]

    @property
    def opens_thinking(self) -> bool:
        """Whether the template opens `<think>` for the model."""
        return self.text.rstrip().endswith(THINK)


def numbered(index: int) -> str:
    """Calls a row by its number, counted from 1."""
    return f"row {index + 1}"


def placed(rows: Sequence[Row]) -> Place:
    """Calls rows by where they stand, file and line, and those that do not say so by their number."""
    return lambda index: rows[index].get("place") or numbered(index)


def encode_prompts(
    rows: Sequence[Row], tokenizer: Tokenizer, chat: Chat = "auto", place: Place = numbered
) -> list[Prompt]:
    """What a model is asked.

    Raises:
        DataError: a row has no prompt, or one that the chat template refuses or loses, or that has no tokens; a chat
            template is asked for and there is none.
        ModelError: the chat template is broken.
    """
    templated = _templated(tokenizer, chat)
    texts = [_text(row, tokenizer, templated, place(index)) for index, row in enumerate(rows)]
    tokens = _encode(tokenizer, texts, special=not templated)
    for index, ids in enumerate(tokens):
        if not ids:
            raise _empty(place(index))
    return [Prompt(text, tuple(ids)) for text, ids in zip(texts, tokens, strict=True)]


def encode_openings(rows: Sequence[Row], tokenizer: Tokenizer, place: Place = numbered) -> list[tuple[Prompt, str]]:
    """Prompts that end where the user begins to speak, behind the row's system prompt if it has one.

    A model that was trained on the template goes on with what a user would ask (Magpie, arXiv 2406.08464, section 2).

    Returns:
        each with what the template puts behind the user's words.

    Raises:
        DataError, ModelError: see `encode_prompts`; there is no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "The tokenizer has no chat template, which would tell the model where a user speaks.",
            hint="Take prompts from a file, or a model that was trained to chat.",
        )
    found = []
    for index, row in enumerate(rows):
        text, _, behind = _text({**row, "prompt": ASKED}, tokenizer, True, place(index)).rpartition(ASKED)
        found.append((text, behind))
    tokens = [ids or _start(tokenizer) for ids in _encode(tokenizer, [text for text, _ in found], special=False)]
    return [(Prompt(text, tuple(ids)), behind) for (text, behind), ids in zip(found, tokens, strict=True)]


def _start(tokenizer: Tokenizer) -> list[int]:
    """What a text begins with, where a template has nothing before a user's words."""
    [start] = _encode(tokenizer, [""], special=True)
    found = start or [ids for ids in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(ids, int)][:1]
    if not found:
        raise DataError(
            "The chat template has nothing before a user's words, and the tokenizer no start token.",
            hint="Take prompts from a file, or a model that was trained to chat.",
        )
    return found


def token_of_end(tokenizer: Tokenizer, behind: str) -> int | None:
    """The token that ends the user's turn, where what the template puts behind it begins with a special one."""
    first = next(iter(_encode(tokenizer, [behind.lstrip()], special=False)[0]), None)
    return first if first in tokenizer.all_special_ids or first in tokenizer.added_tokens_decoder else None


def words_of_end(tokenizer: Tokenizer, behind: str) -> str:
    """The words that end the user's turn, where the template has some before a special token; else nothing."""
    places = [behind.find(token) for token in tokenizer.all_special_tokens if token and token in behind]
    return next(iter(behind[: min(places, default=len(behind))].strip().splitlines()), "")


def encode_examples(
    rows: Sequence[Row], tokenizer: Tokenizer, place: Place = numbered
) -> list[tuple[Prompt, list[int]]]:
    """Prompts, and token ids of what follows each, ended by the end token; a plain text follows an empty prompt.

    Where the template opens `<think>`, a trace that opens it once more would teach to do so: it loses its own.

    Raises:
        DataError, ModelError: see `encode_prompts`.
    """
    asked = [index for index, row in enumerate(rows) if conversation(row)]
    encoded = encode_prompts([rows[index] for index in asked], tokenizer, place=lambda number: place(asked[number]))
    # A text alone has at most a start token before it.
    [start] = _encode(tokenizer, [""], special=True)
    prompts = [Prompt("", tuple(start))] * len(rows)
    for index, prompt in zip(asked, encoded, strict=True):
        prompts[index] = prompt
    for index, row in enumerate(rows):
        refuse_half_pairs(completion_of(row), partial(place, index))
    texts = [
        completion.lstrip().removeprefix(THINK).lstrip("\n") if prompt.opens_thinking else completion
        for prompt, completion in zip(prompts, map(completion_of, rows), strict=True)
    ]
    end = tokenizer.eos_token_id
    ids = [found if found[-1:] == [end] else [*found, end] for found in _encode(tokenizer, texts, special=False)]
    return list(zip(prompts, ids, strict=True))


def conversation(row: Row) -> list[Message]:
    """The turns that stand before a row's completion; none for a text alone."""
    if "messages" in row:
        turns = list(row["messages"])
        if turns and turns[-1]["role"] == "assistant":
            del turns[-1]
    else:
        turns = [Message(role="user", content=row["prompt"])] if row.get("prompt") else []
    if turns and row.get("system"):
        turns.insert(0, Message(role="system", content=row["system"]))
    return turns


def completion_of(row: Row) -> str:
    """What a row teaches to write: its completion, the assistant's last turn, or its text."""
    turns = row.get("messages")
    if turns and turns[-1]["role"] == "assistant":
        return turns[-1]["content"]
    return row.get("completion", row.get("text", ""))


def for_trainer(row: Row, tokenizer: Tokenizer) -> Any:
    """A prompt as TRL takes it: messages for a tokenizer with a chat template, else the text itself."""
    turns = conversation(row)
    return turns if tokenizer.chat_template else turns[-1]["content"] if turns else ""


def dated(tokenizer: Tokenizer) -> str | None:
    """The chat template, told that it is `DAY` if it asks; None for a tokenizer without one.

    transformers lets nobody set `strftime_now`; a macro of that name in front of the template stands before it.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None or DATE not in template:
        return template
    replaced = "".join(f"|replace('%{code}', '{DAY.strftime(f'%{code}')}')" for code in "aAbBdeHIjmMpSyY")
    # Behind a block a line break would be left out, behind a variable it is not.
    return f"{{% macro {DATE}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def prompt_hash(prompts: Sequence[Prompt]) -> str:
    """Hex digest of all prompts in order; equal hashes mean that models were asked the same."""
    return hashlib.sha256("\x00".join(prompt.text for prompt in prompts).encode()).hexdigest()


def _templated(tokenizer: Tokenizer, chat: Chat) -> bool:
    if chat == "yes" and not tokenizer.chat_template:
        raise DataError("chat: 'yes' asks for a chat template; the tokenizer has none.", hint="Use chat: auto or no.")
    return chat != "no" and bool(tokenizer.chat_template)


def _text(row: Row, tokenizer: Tokenizer, templated: bool, place: str) -> str:
    """A row's prompt as text, in the template if there is one."""
    turns = conversation(row)
    for turn in turns:
        if not isinstance(turn.get("content"), str):
            raise DataError(
                f"{place}: the content of a message is {type(turn.get('content')).__name__}, not text.",
                hint="Every message has a role and a content, both text.",
            )
        refuse_half_pairs(turn["content"], lambda: place)
    if not any(turn["content"].strip() for turn in turns if turn["role"] != "system"):
        raise _empty(place)
    if templated:
        return _rendered(turns, row, tokenizer, place)
    asks = "a system prompt" if row.get("system") else "several messages" if len(turns) > 1 else ""
    asks = asks or ("settings of the chat template" if row.get("template") else "")
    if asks:
        raise DataError(
            f"{place} has {asks}, which takes a chat template; none is used here.",
            hint="Put everything into `prompt`, or use a model whose tokenizer has a chat template.",
        )
    return turns[-1]["content"]


def _empty(place: str) -> DataError:
    return DataError(f"{place} has an empty prompt.", hint="Check the data.")


def _rendered(turns: Sequence[Message], row: Row, tokenizer: Tokenizer, place: str) -> str:
    """Turns in the chat template, up to where the assistant begins.

    Raises:
        DataError: the template refuses this row, or loses what it asks.
        ModelError: the template is broken, whatever the row.
    """
    import jinja2

    settings = dict(row.get("template") or {})
    if taken := OWN_SETTINGS & settings.keys():
        raise DataError(
            f"{place}: template sets {', '.join(sorted(taken))}, which rqat sets itself.",
            hint="Leave it out of the row.",
        )
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer has chat templates named {', '.join(sorted(tokenizer.chat_template))} and none named "
            "default.",
            hint="Name one of them default, or keep a single one.",
        )
    try:
        asked = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        text = str(
            tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True, chat_template=dated(tokenizer), **settings
            )
        )
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: {error.message}"
        raise ModelError(f"The chat template is not valid: {where}", hint=TEMPLATE_HINT) from error
    except jinja2.TemplateError as error:
        if not isinstance(error, jinja2.UndefinedError):
            raise DataError(
                f"{place}: the chat template refuses it: {_one_line(error)}",
                hint="Change the row's messages or system prompt, or use another template.",
            ) from error
        raise _failing(place, error) from error
    except Exception as error:  # a template is a program: it may divide by zero
        raise _failing(place, error) from error
    lost = next((turn for turn in _kept(turns) if _squeezed(turn["content"]) not in _squeezed(text)), None)
    if lost is not None:
        raise DataError(
            f"{place}: the chat template loses the {lost['role']}'s text and writes {text[:80]!r}.",
            hint="It may want content as a list of parts, or take no such role. " + TEMPLATE_HINT,
        )
    return text


def _failing(place: str, error: Exception) -> ModelError:
    return ModelError(
        f"{place}: the chat template fails: {_one_line(error)}",
        hint=f"It may want other messages than text by a user. {TEMPLATE_HINT}",
    )


def _kept(turns: Sequence[Message]) -> Iterator[Message]:
    """What a template must not lose: every turn, of earlier answers what stands behind the thinking."""
    for turn in turns:
        said = turn["content"]
        yield Message(role=turn["role"], content=said.rpartition(UNTHINK)[2] if turn["role"] == "assistant" else said)


def _squeezed(text: str) -> str:
    """Without white space, which templates trim."""
    return "".join(text.split())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _encode(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    found = _ids(tokenizer, texts, special=special)
    if special:
        # Some tokenizers end every text with tokens of their own, which need not be the end token.
        behind = len(_behind(tokenizer))
        found = [ids[: len(ids) - behind] for ids in found]
        end = tokenizer.eos_token_id
        found = [ids[:-1] if end is not None and ids[-1:] == [end] else ids for ids in found]
    return found


def _behind(tokenizer: Tokenizer) -> list[int]:
    """What a tokenizer puts behind every text."""
    [bare] = _ids(tokenizer, [PROBE], special=False)
    [whole] = _ids(tokenizer, [PROBE], special=True)
    starts = range(len(whole) - len(bare) + 1) if bare else ()
    start = next((start for start in starts if whole[start : start + len(bare)] == bare), None)
    return [] if start is None else whole[start + len(bare) :]


def _ids(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    # Too long ones are told by whoever asks, or joined and cut: verbose=False silences the tokenizer's own warning.
    encoded = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]
