"""Rows of a source -> the token sequences a quantizer's statistics are taken from.

<step>/calibration.safetensors    input_ids (N, T) int32, attention_mask (N, T) uint8, padding on the right
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...contracts import Row, Source
from ...errors import DataError, ModelError
from ...generation.prompts import encode_examples
from ...job import Job, log
from ...model.config import read_config
from ...model.load import load_tokenizer
from ...stage import READ_AHEAD, Finding, Look, Step
from . import CalibrationKeys

if TYPE_CHECKING:
    import transformers

CALIBRATION_FILE = "calibration.safetensors"


def run(job: Job, step: Step) -> dict[str, Any]:
    """Tokenizes as many rows as the step's settings ask for.

    Returns:
        rows read, sequences, tokens without padding, and the hash of all ids; without `pack` how many rows were cut.

    Raises:
        DataError: the source is empty or ends too early.
        ModelError: sequences would be longer than the model's context.
    """
    keys = step.settings
    assert isinstance(keys, CalibrationKeys)
    source: Source = job.make(step, "source")
    context = read_config(job.plan.model, offline=job.offline).context
    if context is not None and keys.tokens > context:
        raise ModelError(
            f"calibration.tokens: {keys.tokens} is more than the {context} tokens of the model's context.",
            hint=f"Set it to {context} or less.",
        )
    tokenizer = load_tokenizer(job.plan.model, offline=job.offline)
    counted = Counted(source.rows(keys.split, keys.seed))
    with job.progress.task("calibrate", keys.samples) as bar:
        input_ids, attention_mask = calibration_tokens(counted, tokenizer, keys, bar.update)
    save_file({"input_ids": input_ids, "attention_mask": attention_mask}, job.workdir(step) / CALIBRATION_FILE)
    if counted.cut:
        log.warning("%s: %s", step.name, cut_rows(counted, keys))
    return {
        "rows": counted.rows,
        **({} if keys.pack else {"rows_cut": counted.cut}),
        "sequences": len(input_ids),
        "tokens": int(attention_mask.sum()),
        "sha256": hashlib.sha256(input_ids.numpy().tobytes() + attention_mask.numpy().tobytes()).hexdigest(),
    }


def calibration_tokens(
    counted: Counted,
    tokenizer: transformers.PreTrainedTokenizerBase,
    keys: CalibrationKeys,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """As many sequences as `keys` ask for: ids `(N, T)` int32 and their mask `(N, T)` uint8.

    Args:
        progress: told how many sequences there are.

    Raises:
        DataError: the rows end too early.
    """
    sequences: list[list[int]] = []
    for sequence in sequences_of(counted, tokenizer, keys.tokens, pack=keys.pack, cut=counted.note_cut):
        sequences.append(sequence)
        progress(len(sequences))
        if len(sequences) == keys.samples:
            break
    if not counted.rows:
        raise DataError(
            f"calibration.source: '{keys.source}' has no rows in its {keys.split} split.", hint="Check its options."
        )
    if len(sequences) < keys.samples:
        shape = f"sequences of {keys.tokens} tokens" if keys.pack else "rows"
        raise DataError(
            f"calibration: {keys.samples} {shape} were asked for; '{keys.source}' has {len(sequences)} "
            f"in its {counted.rows} rows.",
            hint="Ask for fewer (calibration.samples, calibration.tokens) or add data.",
        )
    return pad(sequences, padding_id(tokenizer))


def read_ahead(step: Step, look: Look) -> Iterator[Finding]:
    """What is wrong with the rows that a step would read, as far as `READ_AHEAD` of them tell.

    Raises:
        RqatError: they cannot be read.
    """
    keys = step.settings
    assert isinstance(keys, CalibrationKeys)
    assert look.parts is not None
    source: Source = look.parts.make(step.parts["source"])
    counted = Counted(itertools.islice(source.rows(keys.split, keys.seed), READ_AHEAD))
    if look.config is None or look.config.folder is None:  # there is no tokenizer yet
        next(iter(counted), None)
    else:
        tokenizer = load_tokenizer(look.plan.model, offline=look.offline)
        found = sequences_of(counted, tokenizer, keys.tokens, pack=keys.pack, cut=counted.note_cut)
        there = sum(1 for _ in itertools.islice(found, keys.samples))
        if counted.rows and there < keys.samples and counted.rows < READ_AHEAD:
            shape = f"sequences of {keys.tokens} tokens" if keys.pack else "rows"
            text = f"{keys.samples} {shape} were asked for; '{keys.source}' has {there} in its {counted.rows} rows."
            yield step.finding("error", "samples", text, "Ask for fewer, or for shorter ones, or add data.")
        if counted.cut:
            yield step.finding("note", "tokens", cut_rows(counted, keys), "`pack: true` loses nothing of them.")
    if not counted.rows:
        text = f"'{keys.source}' has no rows in its {keys.split} split."
        yield step.finding("error", "source", text, "Check its options.")


def cut_rows(counted: Counted, keys: CalibrationKeys) -> str:
    """How many rows lose their end, in a sentence."""
    return f"{counted.cut} of {counted.rows} rows are longer than tokens={keys.tokens} and are cut there."


class Counted:
    """Rows, counted while they are read.

    Attributes:
        rows: so far.
        cut: of them, those that were too long for a sequence of their own.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._source = rows
        self.rows = self.cut = 0

    def note_cut(self) -> None:
        """Counts a row that was cut."""
        self.cut += 1

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            self.rows += 1
            yield row


def sequences_of(
    rows: Iterable[Row],
    tokenizer: transformers.PreTrainedTokenizerBase,
    tokens: int,
    *,
    pack: bool,
    cut: Callable[[], None] = lambda: None,
) -> Iterator[list[int]]:
    """Token sequences made of rows, each row ended by the end-of-sequence token.

    Args:
        tokens: length of every sequence with `pack`; without, the length rows are cut at.
        pack: join rows and split the stream (what is left over at its end is dropped), or one sequence per row.
        cut: called for every row that is cut.
    """
    stream: list[int] = []
    for number, row in enumerate(rows, start=1):
        ids = tokenize(row, tokenizer, row.get("place") or f"row {number} of the calibration data")
        if not pack:
            if len(ids) > tokens:
                cut()
            yield ids[:tokens]
            continue
        stream += ids
        start = 0
        while len(stream) - start >= tokens:
            yield stream[start : start + tokens]
            start += tokens
        del stream[:start]


def tokenize(row: Row, tokenizer: transformers.PreTrainedTokenizerBase, place: str = "a row") -> list[int]:
    """Token ids of one row, ended by the end-of-sequence token, as training has them (see `encode_examples`)."""
    [(prompt, after)] = encode_examples([row], tokenizer, lambda index: place)
    return [*prompt.tokens, *after]


def pad(sequences: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Ids `(N, T)` int32, filled on the right, and the mask `(N, T)` uint8 that is 0 there."""
    longest = max(map(len, sequences))
    input_ids = torch.full((len(sequences), longest), filler, dtype=torch.int32)
    attention_mask = torch.zeros((len(sequences), longest), dtype=torch.uint8)
    for index, sequence in enumerate(sequences):
        input_ids[index, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
        attention_mask[index, : len(sequence)] = 1
    return input_ids, attention_mask


def padding_id(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """A token to fill up with; which one does not matter, since it is masked."""
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(filler, int)
    return filler
