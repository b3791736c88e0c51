"""Where rows come from: files (`jsonl`, `table`, `text`), GSM8K, the Hugging Face hub, prompts of all kinds, mixtures.

Every source keeps train, validation and test apart and gives the same rows in the same order for the same seed.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

import rqat

RowField = Literal["text", "prompt", "completion", "answer", "messages", "system"]


class RowsOptions(rqat.Options):
    """How a record of a file or of a data set becomes rows.

    Attributes:
        fields: which of a record's fields is which of a row's, e.g. `{prompt: problem, completion: solution}`;
            `generations.0` leads into one. Without it the usual shapes are known: `text`; `prompt`, `completion` and
            `answer`; `messages` (role, content); ShareGPT's `conversations` (from, value); Alpaca's `instruction`,
            `input` and `output`; and `system` beside any of them.
        turns: of a conversation, learn to write the assistant's last turn, or a row of its own for all of them.
        shuffle: mix the order of the rows, by the seed.
    """

    fields: dict[RowField, str] = Field(default_factory=dict)
    turns: Literal["last", "all"] = "last"
    shuffle: bool = True


class JsonlOptions(RowsOptions):
    """Options of `jsonl`.

    Attributes:
        path: a file with one JSON object per line, or a JSON list of such; may end in .gz.
        validation: share of the rows set aside for the split `validation`, chosen by a hash of the row.
    """

    path: rqat.File
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05


class TableOptions(RowsOptions):
    """Options of `table`.

    Attributes:
        path: a .csv, .tsv or .parquet file whose columns are the fields; .csv and .tsv may end in .gz.
        validation: share of the rows set aside for the split `validation`, chosen by a hash of the row.
    """

    path: rqat.File
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05


class TextOptions(rqat.Options):
    """Options of `text`.

    Attributes:
        path: a plain text file, or a `.gz` of one.
        split_at: what separates documents: an empty line, a line break, or nothing (the whole file is one).
        min_chars: documents shorter than this are left out.
        validation: share of the documents set aside for the split `validation`, chosen by a hash of the text.
        shuffle: mix the order of the documents, by the seed.
    """

    path: rqat.File
    split_at: Literal["paragraph", "line", "file"] = "paragraph"
    min_chars: Annotated[int, Field(ge=1)] = 1
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    shuffle: bool = True


class Gsm8kOptions(rqat.Options):
    """Options of `gsm8k`.

    Attributes:
        path: a folder with `train.jsonl` (or `.jsonl.gz`), or that file; without it `$RQAT_DATA/gsm8k` if there is one,
            else `openai/gsm8k` from the hub.
        validation: share of the train split, chosen by a hash of the problem, that forms the split `validation`.
        instruction: put after each question; by default the one that the task `gsm8k` puts there.
        shuffle: mix the order of the problems, by the seed.
    """

    path: rqat.File | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    shuffle: bool = True


class GeneralOptions(rqat.Options):
    """`general` has no options."""


class HubOptions(RowsOptions):
    """Options of `hub`.

    Attributes:
        name: a data set's name on the hub ("open-r1/OpenR1-Math-220k").
        config: its configuration, where it has several.
        revision: commit or branch; None is the default branch.
        splits: which split of the data set to read for ours; splits that are not listed are not there.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    splits: dict[rqat.Split, str] = Field(default={"train": "train"})


class MixOptions(rqat.Options):
    """Options of `mix`.

    Attributes:
        parts: sources with weights and options: `[{source: gsm8k, weight: 0.8}, {source: text, weight: 0.2, ...}]`.
        exhausted: what happens when a part has no rows left: `stop` ends the mixture, so that the weights hold to the
            end; `cycle` starts that part again, until the part that lasts longest has been read once.
    """

    parts: Annotated[list[rqat.Part], Field(min_length=1)]
    exhausted: Literal["stop", "cycle"] = "stop"


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    """The cards of the sources."""
    register("jsonl", options=JsonlOptions, load=".files:Jsonl", summary="rows of a JSON-lines file")
    register("table", options=TableOptions, load=".table:Table", summary="rows of a CSV, TSV or Parquet file")
    register("text", options=TextOptions, load=".files:Text", summary="documents of a plain text file", domain="text")
    register("gsm8k", options=Gsm8kOptions, load=".gsm8k:Gsm8k", summary="grade-school maths, solved", domain="math")
    register(
        "general", options=GeneralOptions, load=".general:General", summary="prompts of all kinds, to look at only"
    )
    register("hub", options=HubOptions, load=".hub:Hub", summary="a data set of the Hugging Face hub")
    register("mix", options=MixOptions, load=".mix:Mix", summary="a weighted mixture of other sources")
