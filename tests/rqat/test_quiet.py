"""Libraries are quiet while rqat works, and afterwards as they were."""

from __future__ import annotations

import io
import logging
import warnings

import pytest

from rqat.quiet import TRAINING, hush, quiet_training


def test_training_is_quiet_and_leaves_no_trace(recwarn: pytest.WarningsRecorder) -> None:
    import datasets
    from transformers.utils import logging as transformers_logging

    def state() -> tuple[object, ...]:
        levels = [logging.getLogger(name).level for name in TRAINING]
        bars = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
        return levels, bars, datasets.is_caching_enabled()

    before = state()
    with quiet_training():
        assert state() == ([logging.ERROR] * len(TRAINING), (False, True), False)
        warnings.warn("of a library", stacklevel=1)
    assert state() == before
    assert not recwarn.list


def test_only_errors_pass() -> None:
    shown = io.StringIO()
    log = logging.getLogger("a.library")
    log.addHandler(logging.StreamHandler(shown))
    hush("a.library")
    log.warning("hm")
    log.error("oh")
    assert shown.getvalue() == "oh\n"
