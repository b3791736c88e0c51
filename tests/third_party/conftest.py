"""Plugins of strangers, given by their paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rqat.registry import Registry


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """`given("acme_table")` loads plugin files of this folder; afterwards they are gone again."""
    loaded: list[str] = []

    def load(*names: str) -> Registry:
        loaded.extend(names)
        paths = (str(Path(__file__).parent / f"{name}.py") for name in names)
        monkeypatch.setenv("RQAT_PLUGINS", os.pathsep.join(paths))
        return Registry.discover()

    yield load
    for name in loaded:
        sys.modules.pop(name, None)
    monkeypatch.delenv("RQAT_PLUGINS", raising=False)
    Registry.discover()
