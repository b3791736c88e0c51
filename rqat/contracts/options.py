"""Options of a plugin, and how they are checked before any work is done."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from ..scheme import Scheme
from . import returned
from .data import spelled_source
from .returned import Level

LAST_SEED = (1 << 32) - 1
"""The largest seed that numpy takes, and with it transformers."""

Seed = Annotated[int, Field(ge=0, le=LAST_SEED)]
"""Of random numbers, as every library takes it."""


@dataclass(frozen=True)
class Neutral:
    """Marks a key, or an option, that cannot change a result: `patience: Annotated[int, rqat.Neutral("...")] = 20`.

    Every other one counts in the fingerprint of its step: a step with another value is done again from its start, and
    not continued.

    Attributes:
        why: what it changes instead, or where it counts.
    """

    why: str

    @classmethod
    def marks(cls, field: FieldInfo) -> bool:
        """Whether a field of keys or options is marked so."""
        return any(isinstance(mark, cls) for mark in field.metadata)


@dataclass(frozen=True)
class Problem:
    """One thing to know before a run.

    Attributes:
        text: what was asked and what is wrong with it; one line, without its place, which the host puts in front.
        hint: what to do about it.
        key: the key it is about, beside which the host says the place (`recipes/mine.yaml:7 train.1.batch`).
        level: an error stops the run; a warning may spoil it; a note is good to know.
    """

    text: str
    hint: str = ""
    key: str = ""
    level: Level = "error"


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model from its files alone.

    Attributes:
        linears: `(O, I)` of every linear layer of the decoder blocks, by full name, in the order data passes them; and
            of an embedding and a head that are quantized.
        context: tokens a sequence may have; None where the model sets no bound.
        config: its config.json.
    """

    name: str
    model_type: str
    linears: Mapping[str, tuple[int, int]]
    hidden: int
    vocab: int
    blocks: int
    tied: bool
    context: int | None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a part sees when its options are checked, before torch is imported.

    Attributes:
        settings: the recipe's own keys for this step, with defaults (`batch`, `micro_batch`, `max_tokens`, ...).
        schemes: the scheme of every layer that will be quantized, by full name; empty where nothing is.
        model: None when the model's files cannot be read, which the host reports by itself.
        processes: how many train together.
        device: "cpu" or "cuda".
        tokenizer: loads the model's tokenizer; takes seconds, so call it only where nothing else will do.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    model: ModelShape | None = None
    processes: int = 1
    device: str = "cpu"
    tokenizer: Callable[[], Any] | None = None


class Options(BaseModel):
    """Base class of every plugin's options: a pydantic model that refuses unknown keys.

    In a recipe the options stand beside the host's own keys (`quantize: {method: gptq, damp: 0.01}`).
    """

    # Defaults are validated, too: `path: rqat.File = "rows.jsonl"` is a file, and not a text that nobody hashes.
    # An option with an alias goes by its name as well, which is what is shown.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **more: Any) -> None:
        super().__pydantic_init_subclass__(**more)
        checks = {"check": returned.told, "also_needs": returned.names}
        returned.held_to(cls, {**checks, "bits_in_file": returned.bits, "bytes_beside": returned.count})

    def check(self, context: Context) -> Iterable[Problem]:
        """What stands against these options on this model, told by `rqat plan` and before any work.

        Must not import torch. Whatever the pydantic fields cannot say by themselves belongs here: a batch that does
        not split, layers that do not divide, a scheme that cannot be done.
        """
        return ()

    def also_needs(self) -> Iterable[str]:
        """Of a quantizer: the statistics that these options need beyond those of its card."""
        return ()

    def bits_in_file(self, scheme: Scheme, in_features: int) -> float | None:
        """Of an exporter: bits per weight that its file takes for a layer; None is about what the scheme says.

        For formats that hold some widths in wider types: sizes, and budgets of bytes, are told by it.
        """
        return None

    def bytes_beside(self, context: Context) -> int:
        """Of an exporter: bytes of its file beside tensors and what is said of each, at most.

        For formats whose file holds a vocabulary, for example. Only budgets of bytes ask for it.
        """
        return 0


def in_file(exporter: Options | None, per_weight: Callable[[Scheme], float]) -> Callable[[Scheme, int], float]:
    """Bits per weight as a file holds it, by the scheme of a layer and its input features.

    Args:
        exporter: options of what writes the file; None: there is none.
        per_weight: where those say nothing, by the scheme alone: see `rqat.grids.bits_per_weight`.
    """

    def told(scheme: Scheme, in_features: int) -> float:
        own = None if exporter is None else exporter.bits_in_file(scheme, in_features)
        return per_weight(scheme) if own is None else own

    return told


def expanded(path: str) -> Path:
    """A path as it is written in a recipe, with `~` and `$VARIABLES` replaced by what they stand for."""
    return Path(os.path.expandvars(path)).expanduser()


def became(path: str) -> str:
    """What is to be said behind a path as it is written: what it became, or which of its variables are not set."""
    found = str(expanded(path))
    unset = re.findall(r"\$\{?\w+\}?", found)
    told = f"{', '.join(unset)} is not set" if unset else found if found != str(Path(path)) else ""
    return f" ({told})" if told else ""


class File(str):
    """A path of a data file or folder, as a type of options: it has to exist, and its contents are fingerprinted.

    How the path is spelled does not count, only what it holds. A relative path starts from the current folder.
    """

    @property
    def path(self) -> Path:
        """As a path, with `~` and `$VARIABLES` expanded."""
        return expanded(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialize = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(), serialization=serialize)


class Command(str):
    """A command line, as a type of options: a program of the user's that a part runs.

    A recipe, which may be somebody else's, cannot name one: only the command line can.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialize = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(), serialization=serialize)


class Grader(str):
    """A task by its name, as a type of options: its grader judges what is written.

    It has to be there, with the defaults of its options, and its source counts in the fingerprint.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        serialize = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(), serialization=serialize)


class Part(BaseModel):
    """One part of a source made of others: `{source: gsm8k, weight: 0.8, ...options of that source}`.

    A plain text is a source's name; a path in place of a name is read by the source of such files.

    Attributes:
        source: its name, or a path.
        weight: its share, beside the weights of the others.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str
    weight: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        return spelled_source({"source": given} if isinstance(given, str) else given)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the named source, not yet validated."""
        return dict(self.model_extra or {})


class Start(BaseModel):
    """A quantizer that another one starts from, as a type of options: `gptq`, or `{method: gptq, damp: 0.05}`.

    It has to be there and to take these options, and its source counts in the fingerprint. `rqat.quantizer_of` makes
    it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given

    def __repr__(self) -> str:
        return repr({"method": self.method, **self.options} if self.options else self.method)

    __str__ = __repr__

    @property
    def options(self) -> dict[str, Any]:
        """The options of the named quantizer, not yet validated."""
        return dict(self.model_extra or {})


def parts_of(options: Options) -> Iterator[tuple[str, int, Part]]:
    """Every `Part` in a source's options, with the option's name and its index."""
    for name, value in options:
        if isinstance(value, (list, tuple)):
            yield from ((name, index, part) for index, part in enumerate(value) if isinstance(part, Part))


def graders_of(options: Options) -> Iterator[tuple[str, Grader]]:
    """Every `Grader` in options, with the option's name."""
    yield from ((name, value) for name, value in options if isinstance(value, Grader))


def starts_of(options: Options) -> Iterator[tuple[str, Start]]:
    """Every `Start` in a quantizer's options, with the option's name."""
    yield from ((name, value) for name, value in options if isinstance(value, Start))
