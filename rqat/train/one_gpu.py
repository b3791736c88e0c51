"""Training in one process stays on one GPU, however many are visible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_gpu() -> Iterator[None]:
    """Has every Trainer built here count one GPU at most.

    Where a process sees several, transformers wraps the model in `nn.DataParallel` and multiplies the batch, and TRL
    refuses to go on. The number is no argument: it is asked for by this property, while a trainer is built and later.
    """
    from transformers import TrainingArguments

    arguments: Any = TrainingArguments
    counted: property = vars(arguments)["n_gpu"]
    arguments.n_gpu = property(lambda given: min(1, counted.__get__(given)))
    try:
        yield
    finally:
        arguments.n_gpu = counted
