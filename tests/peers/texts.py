"""The tokens: what everybody calibrates on, and what everybody is judged on, in domain and out of it.

Plain texts, each ended by the end-of-sequence token, joined and cut into rows of equal length. GSM8K's training
problems with their answers calibrate; its test problems and WikiText-2's test text judge.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

CALIBRATION = "gsm8k/train.jsonl.gz"
DOMAINS = {"in": "gsm8k/test.jsonl", "out": "text_ood/wikitext2_test_raw.txt.gz"}
"""Files under RQAT_DATA."""

LENGTH = 512
"""Tokens in a row."""

CALIBRATION_ROWS = 64


def texts(path: Path) -> Iterator[str]:
    """Problems with their answers, or paragraphs that are longer than a heading."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            if ".jsonl" in path.name:
                row = json.loads(line)
                yield f"{row['question']}\n{row['answer']}"
            elif len(line) > 100:
                yield line.strip()


def packed(model: Path, path: Path, rows: int) -> list[list[int]]:
    """As many rows of `LENGTH` token ids as asked for.

    Raises:
        ValueError: the file holds fewer.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def stream() -> Iterator[int]:
        for text in texts(path):
            yield from tokenizer(text, add_special_tokens=False)["input_ids"]
            yield tokenizer.eos_token_id

    ids = list(islice(stream(), rows * LENGTH))
    if len(ids) < rows * LENGTH:
        raise ValueError(f"{path} has {len(ids)} tokens; {rows} rows of {LENGTH} were asked for.")
    return [ids[start : start + LENGTH] for start in range(0, len(ids), LENGTH)]
