"""`rqat generate`: one prompt, one answer, printed while it is written; or a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from ..contracts.options import LAST_SEED
from ..errors import DataError
from ..quiet import only_our_bars
from . import display, options
from .device import Device
from .values import pairs

if TYPE_CHECKING:
    from ..contracts import Completion, Message, Row

DEFAULT_TOKENS = 1024

HOW = 'Give one: rqat generate MODEL "What is 2 + 3?". A - in its place reads it from stdin; -c talks.'


def generate(
    context: typer.Context,
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROBLEM]", help="What to answer; - reads it from stdin.")
    ] = None,
    conversation: Annotated[
        bool, typer.Option("-c", "--conversation", help="Talk: every line is a turn, an empty one ends it.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens after which it is cut off.  [default: 1024, if they fit]")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling, with a temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the sampling.")] = 0,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="KEY=VALUE", help="Setting of the chat template: enable_thinking=false."),
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; else if there is one.")
    ] = None,
    backend: options.Backend = "auto",
    dtype: options.Dtype = "auto",
    device: Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Answer a prompt with a model, or talk with it. It may be an original, a quantized or an exported one."""
    from ..keys import ModelKeys
    from ..model.memory import importing

    if prompt == "-":
        prompt = _stdin().read()
    if not conversation and not (prompt or "").strip():
        raise DataError("The prompt is empty.", hint=HOW)
    if conversation and chat is False:
        raise DataError("-c and --no-chat do not go together.", hint="A conversation takes a chat template.")
    more: Row = {}
    if system:
        more["system"] = system
    if template:
        more["template"] = pairs(template, "--template")
    keys = ModelKeys(path=model, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    with display.waiting("Loading the model"), importing():
        from ..generation.backend import open_model, writer_for
        from ..model.devices import device_to_work_on

        only_our_bars()
        loaded, tokenizer = open_model(keys, device=device_to_work_on(), offline=context.obj.offline, backend=backend)
        writer = writer_for(loaded, backend)
    chosen: Literal["auto", "yes", "no"] = "auto" if chat is None else "yes" if chat else "no"
    if conversation and not tokenizer.chat_template:
        raise DataError(f"The tokenizer of '{model}' has no chat template.", hint="A conversation takes one.")
    answer = _answerer(loaded, tokenizer, writer, (max_new_tokens, temperature, top_p), chosen)
    if not conversation:
        answer({"prompt": prompt or "", **more}, seed)
        return
    turns: list[Message] = []
    stdin = _stdin()  # one for all turns: a pipe is read ahead of them
    said = (prompt or "").strip() or _next_turn(stdin)
    while said:
        turns.append({"role": "user", "content": said})
        completion = answer({"messages": list(turns), **more}, seed + len(turns) // 2)
        # What a model thought is no part of the conversation.
        turns.append({"role": "assistant", "content": completion.text.rpartition("</think>")[2].strip()})
        said = _next_turn(stdin)


def _stdin() -> TextIO:
    """Standard input as files are read; bytes that are no text become half characters, which no prompt may hold."""
    return typer.get_text_stream("stdin", "utf-8-sig", "surrogateescape")


def _next_turn(stdin: TextIO) -> str:
    """What the user says next; "" where nothing more comes."""
    typer.echo("> ", err=True, nl=False)
    return stdin.readline().strip()


def _answerer(
    model: Any,
    tokenizer: Any,
    writer: Any,
    sampling: tuple[int | None, float, float],
    chat: Literal["auto", "yes", "no"],
) -> Callable[[Row, int], Completion]:
    """Answers a row and prints the answer while it is written."""
    import torch
    import transformers

    from ..generation.complete import Generator
    from ..generation.prompts import encode_prompts
    from ..generation.sampling import Sampling, context_length, too_little_room

    asked, temperature, top_p = sampling

    class Harmless(transformers.TextStreamer):
        """Prints what a model writes; characters that steer a terminal are spelled out."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(display.harmless(text), stream_end)

    def answer(row: Row, seed: int) -> Completion:
        [encoded] = encode_prompts([row], tokenizer, chat, lambda index: "The prompt")
        length = len(encoded.tokens)
        room = context_length(model) - length
        if room < 1:
            raise DataError(
                f"The prompt has {length} tokens; the context of the model holds {length + room}.",
                hint="Shorten the prompt.",
            )
        if less := too_little_room(room, asked):
            display.note(f"The model's context holds {length + room} tokens: {less}")
        streamer: Any = Harmless(tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.put(torch.tensor(encoded.tokens))
        limit = min(asked or DEFAULT_TOKENS, room)
        generator = Generator(model, tokenizer, Sampling(limit, temperature, top_p), writer)
        [completion] = generator.complete(
            [encoded], limit, seed, stream=lambda tokens: streamer.put(torch.tensor(tokens))
        )
        streamer.end()
        if not completion.ended:
            way = "--max-new-tokens allows more" if limit < room else "the context ends there"
            display.note(f"Cut off after {limit} tokens; {way}.")
        return completion

    return answer
