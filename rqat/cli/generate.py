"""`rqat generate`: one prompt, one answer, printed while it is written."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from ..errors import DataError
from ..quiet import only_our_bars
from . import display, options
from .device import Device


def generate(
    context: typer.Context,
    model: options.Model,
    prompt: Annotated[str, typer.Argument(metavar="PROBLEM", help="What to answer; - reads it from stdin.")],
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens after which it is cut off.  [default: 1024, if they fit]")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling, with a temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; else if there is one.")
    ] = None,
    backend: options.Backend = "auto",
    device: Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Answer one prompt with a model. The model may be an original, a quantized or an exported one."""
    import torch
    import transformers

    from ..generation.backend import open_model, writer_for
    from ..generation.complete import Generator
    from ..generation.prompts import encode_prompts
    from ..generation.sampling import Sampling, context_length
    from ..keys import ModelKeys
    from ..model.devices import default_device

    if prompt == "-":
        prompt = typer.get_text_stream("stdin").read()
    if not prompt.strip():
        raise DataError("The prompt is empty.", hint='Give one: rqat generate MODEL "What is 2 + 3?"')
    only_our_bars()
    loaded: Any
    keys = ModelKeys(path=model, revision=revision, trust_remote_code=trust_remote_code)
    loaded, tokenizer = open_model(keys, device=default_device(), offline=context.obj.offline, backend=backend)
    chosen: Literal["auto", "yes", "no"] = "auto" if chat is None else "yes" if chat else "no"
    [encoded] = encode_prompts([{"prompt": prompt}], tokenizer, chosen, lambda index: "The prompt")
    length = len(encoded.tokens)
    room = context_length(loaded) - length
    if room < 1:
        raise DataError(
            f"The prompt has {length} tokens; the context of '{model}' holds {length + room}.",
            hint="Shorten the prompt.",
        )
    if max_new_tokens is not None and room < max_new_tokens:
        display.note(f"The context leaves room for {room} new tokens.")

    class Harmless(transformers.TextStreamer):
        """Prints what a model writes; characters that steer a terminal are spelled out."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(display.harmless(text), stream_end)

    streamer: Any = Harmless(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.put(torch.tensor(encoded.tokens))
    limit = min(max_new_tokens or 1024, room)
    generator = Generator(loaded, tokenizer, Sampling(limit, temperature, top_p), writer_for(loaded, backend))
    [completion] = generator.complete([encoded], limit, seed, stream=lambda tokens: streamer.put(torch.tensor(tokens)))
    streamer.end()
    if not completion.ended:
        way = "--max-new-tokens allows more" if limit < room else "the context ends there"
        display.note(f"Cut off after {limit} tokens; {way}.")
