"""Silences the libraries below while they train: progress and warnings are rqat's to show."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("transformers", "trl", "accelerate", "datasets", "torch.distributed")


@contextmanager
def quiet_training() -> Iterator[None]:
    """No progress bars, no log lines below errors, no warnings, and no dataset cache outside the run folder."""
    import datasets
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in NOISY}
    bars, hub_bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    caching = datasets.is_caching_enabled()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.disable_caching()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if caching:
            datasets.enable_caching()
        if hub_bars:
            transformers_logging.enable_progress_bar()
