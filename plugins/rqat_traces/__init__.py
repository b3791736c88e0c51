"""What the model before quantization writes by itself: answers to prompts, and prompts.

A quantized model stays closer to itself on text of its own than on text of others, and so do calibration and training
on it: they see the lengths, the wording and the mistakes that the model will meet when it reasons. What it writes is
written once, in a step of its own, and read by every step that names the source with the same options.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

import rqat

Condition = Literal["finished", "not-looping", "correct"]


def _one_part(value: Any) -> Any:
    """A source's name, or its mapping, as a list of one."""
    return [{"source": value}] if isinstance(value, str) else [value] if isinstance(value, Mapping) else value


def _several(value: Any) -> Any:
    """A text as the only one of several."""
    return (value,) if isinstance(value, str) else value


def _room(context: rqat.Context, max_new_tokens: int) -> Iterator[rqat.Problem]:
    room = context.model.context if context.model else None
    if room is not None and max_new_tokens >= room:
        text = f"{max_new_tokens}, but the model's context is {room}."
        yield rqat.Problem(text, "Completions end where the context does.", "max_new_tokens", "warning")


class TracesOptions(rqat.Options):
    """Options of `traces`.

    Attributes:
        prompts: the source of the prompts: its name, its mapping, or a list of one.
        limit: how many of its prompts are asked, the first ones. None is all.
        n: completions of each prompt.
        temperature: of sampling; 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`.
        max_new_tokens: tokens after which a completion is cut off.
        system: a system prompt before every prompt; it takes a chat template.
        chat_template_kwargs: settings of the chat template, such as `{enable_thinking: false}`.
        keep: which completions are kept: those for which all of this holds. `finished`: it ended by itself;
            `not-looping`: it does not end in one piece said again and again; `correct`: the grader of `task` says so.
        task: whose grader judges, with the defaults of its options; named without `correct` under `keep`, it only
            counts.
        batch: completions written together, and lost when the run is interrupted. rqat's engine fills rows that end
            with prompts that wait: on a GPU a thousand are written faster than ten times a hundred.
    """

    prompts: Annotated[list[rqat.Part], BeforeValidator(_one_part), Field(min_length=1, max_length=1)]
    limit: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=2048, ge=1)
    system: str = ""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    keep: Annotated[tuple[Condition, ...], BeforeValidator(_several)] = ("finished", "not-looping")
    task: rqat.Grader | None = None
    batch: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TracesOptions:
        if "correct" in self.keep and self.task is None:
            raise ValueError("keep: 'correct' needs a grader; name one with `task`, e.g. task: gsm8k.")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n: {self.n} greedy completions of a prompt are all alike; set a temperature.")
        return self

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """See `rqat.Options`."""
        yield from _room(context, self.max_new_tokens)


class MagpieOptions(rqat.Options):
    """Options of `magpie`.

    Attributes:
        n: prompts that are written; those that are kept are fewer: four of five to train on, if none is spoiled.
        system: a system prompt before every prompt, which says what about; several take turns.
        temperature: of sampling. There is nothing to be greedy about: all prompts have the same beginning.
        top_p: nucleus sampling bound.
        max_new_tokens: tokens after which a prompt is cut off, and not kept.
        chat_template_kwargs: settings of the chat template.
        batch: prompts written together, and lost when the run is interrupted.
    """

    n: int = Field(ge=1)
    system: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    batch: int = Field(default=64, ge=1)

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """See `rqat.Options`."""
        yield from _room(context, self.max_new_tokens)


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    """What answers, and what asks."""
    register(
        "traces",
        options=TracesOptions,
        load=".answers:Traces",
        model=True,
        summary="answers of the model before quantization to another source's prompts",
    )
    register(
        "magpie",
        options=MagpieOptions,
        load=".prompts:Magpie",
        model=True,
        summary="prompts that the model before quantization thinks of itself, to be answered by traces",
    )
