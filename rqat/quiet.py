"""Keeps libraries quiet, whose progress bars, log lines and warnings rqat replaces by its own."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRAINING = ("transformers", "trl", "accelerate", "datasets", "torch.distributed")
"""Loggers of what takes part in training."""


def quiet_imports() -> None:
    """No warnings, and what libraries read in the environment when they are imported; what the user has set stays."""
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")


def hush(*names: str, level: int = logging.ERROR) -> None:
    """No log lines below `level` from these loggers, for the rest of the process."""
    for name in names:
        logging.getLogger(name).setLevel(level)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_training() -> Iterator[None]:
    """No progress bars, no log lines below errors, no warnings, and no dataset cache outside the run folder."""
    import datasets

    levels = {name: logging.getLogger(name).level for name in TRAINING}
    bars, caching = datasets.are_progress_bars_disabled(), datasets.is_caching_enabled()
    hush(*TRAINING)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    try:
        with quiet_loading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            hush(name, level=level)
        if not bars:
            datasets.enable_progress_bars()
        if caching:
            datasets.enable_caching()


@cache
def only_our_bars() -> None:
    """Keeps the progress bars of libraries off the screen, for the rest of the process; those of downloads stay.

    compressed-tensors and lm-eval insist on theirs (`disable=False`), so that tqdm's environment variable is no help.
    """
    from tqdm import tqdm

    original = tqdm.__init__

    def quiet(self: Any, *arguments: Any, **settings: Any) -> None:
        if not type(self).__module__.startswith("huggingface_hub"):
            settings["disable"] = True
        original(self, *arguments, **settings)

    tqdm.__init__ = quiet
