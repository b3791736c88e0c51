"""Rows to calibrate on and to train on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from . import returned

if TYPE_CHECKING:
    import transformers

    from .options import Problem
    from .tasks import Completion, Verdict

Split = Literal["train", "validation", "test"]


FILES = {
    **dict.fromkeys((".jsonl", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".parquet"), "table"),
    ".txt": "text",
}
"""Which source reads a plain file, by its ending without `.gz`: a path may stand where a source is expected."""


def spelled_source(given: Any) -> Any:
    """A mapping that names a source, where it names a file: `{source: traces.jsonl}` as that of the source of files."""
    name = given.get("source") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or "path" in given:
        return given
    source = FILES.get(Path(name.removesuffix(".gz")).suffix.lower())
    return {**given, "source": source, "path": name} if source else given


class Message(TypedDict):
    """One turn of a conversation: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


class Row(TypedDict, total=False):
    """One example: `text` alone; or `prompt` with `completion`; or `messages`.

    Attributes:
        text: plain text.
        prompt: a problem.
        completion: what is to be learned to follow it.
        answer: where a completion can be graded.
        messages: a conversation in place of prompt and completion; a last turn of the assistant is the completion.
        system: a system prompt to stand before `prompt`.
        template: settings of the chat template, e.g. `{"enable_thinking": False}`.
        place: where it was read (`traces.jsonl:17`), for messages about it.
    """

    text: str
    prompt: str
    completion: str
    answer: str
    messages: Sequence[Message]
    system: str
    template: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class LoadedModel:
    """The model before quantization, for a source that asks for it.

    Attributes:
        complete: completions of rows' prompts, written as evaluations write them: `complete(rows, samples=1,
            max_new_tokens=..., temperature=..., top_p=..., seed=..., batch=...)`, a list of completions for every row.
            With `turn="user"` the model writes what a user would ask, behind the row's system prompt.
            Who calls it piece by piece says with `total=` how many completions all calls will make, for the progress
            display.
        grade: what a task's grader says of a completion: `grade(task, completion.text, row)`, where the options name
            the task by an `rqat.Grader`.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    complete: Callable[..., list[list[Completion]]]
    grade: Callable[[str, str, Row], Verdict]


class Source(ABC):
    """Rows to calibrate on or to train on.

    A source whose card says `model=True` is given a step of its own before it is read: `produce` runs once, with the
    model before quantization, and what it writes into `folder` is kept, fingerprinted, and shared by every step that
    names the source with the same options.
    """

    folder: Path | None = None

    def __init__(self, options: Any) -> None:
        self.options = options

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        returned.held_to(cls, {"rows": returned.rows, "read_ahead": returned.told})

    @abstractmethod
    def rows(self, split: Split, seed: int) -> Iterator[Row]:
        """Yields rows; the same arguments give the same rows in the same order, on every machine.

        Raises:
            DataError: the data is missing, empty, or a row is malformed (with file and line).
        """

    def combine(self, parts: Sequence[Source]) -> None:  # noqa: B027 (most sources are made of nothing else)
        """Receives the sources named by an option of type `list[rqat.Part]`, built by the host, in order."""

    def produce(self, folder: Path, loaded: LoadedModel, split: Split, seed: int) -> Mapping[str, Any]:
        """Writes what `rows` reads from `self.folder` later; returns figures for the report.

        Called again with the same folder after an interruption: what is there may be continued from.
        """
        raise NotImplementedError

    def read_ahead(self, split: Split, seed: int) -> Iterable[Problem]:
        """Of a source that asks for the model: what of its own data would spoil `produce`, told before any work.

        Called with `combine` done and nothing produced; reads no more than takes a moment.

        Raises:
            DataError: the data cannot be read.
        """
        return ()
