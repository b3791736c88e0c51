"""Task `kl`: how far a model is from its original, token by token, and how well it predicts the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

import rqat


class KlOptions(rqat.ComparisonOptions):
    """Options of `kl`.

    Attributes:
        rows: sources of the rows: `[{source: traces, prompts: gsm8k}]`; their split `validation` unless `split` says
            otherwise.
        data: a `.jsonl` or text file in place of `rows`, or its `.gz`: all of it is read.
        tokens: longest sequence, and never more than the models' context; a longer row is cut into several, each read
            by itself.
        pack: join rows into sequences of exactly so many tokens, as perplexities of plain text are usually given; what
            is left over is dropped. `limit` counts rows before they are joined: 16 lines of a text may come to one
            sequence.
        positions: which tokens count: those behind the prompts (of a plain text all), or all.
    """

    tokens: int = Field(default=2048, ge=2)
    pack: bool = False
    positions: Literal["completion", "all"] = "completion"

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """See `rqat.Options`."""
        room = context.model.context if context.model else None
        if room is not None and "tokens" in self.model_fields_set and self.tokens > room:
            text = f"{self.tokens}, but the model's context is {room}."
            yield rqat.Problem(text, f"Sequences are of {room} tokens at most.", "tokens", "warning")

    @model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, given: Any) -> Any:
        """`data` as a source that reads the whole file."""
        if not isinstance(given, dict):
            return given
        rows, data = given.get("rows"), given.get("data")
        if isinstance(rows, (str, dict)):
            return given | {"rows": [{"source": rows} if isinstance(rows, str) else rows]}
        if data is None and rows is None:
            raise ValueError("kl: says nothing of the rows; name a source (rows: gsm8k) or a file (data).")
        if data is None:
            return given
        if rows is not None:
            raise ValueError("data: stands beside rows; give one of the two.")
        source = "jsonl" if str(data).removesuffix(".gz").endswith(".jsonl") else "text"
        part = {"source": source, "path": data, "validation": 0, "shuffle": False}
        return {"split": "train"} | given | {"rows": [part]}


@rqat.hookimpl
def register_tasks(register: rqat.RegisterTask) -> None:
    """The card of `kl`."""
    register(
        "kl",
        options=KlOptions,
        load=".task:Kl",
        summary="distance from the model before quantization on held-out rows, and perplexity",
        compares=("kl", "perplexity"),
    )
