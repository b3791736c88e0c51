"""What a process keeps of the memory that it frees."""

from __future__ import annotations

import gc
import platform
import resource
import statistics

import pytest
import torch

from rqat.model.memory import keep_freed, settle


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library hands memory out in another way")
def test_freed_memory_is_used_again() -> None:
    """Three tensors of 30 MB at a time are more than glibc keeps of itself: they would take 22,000 new pages."""
    keep_freed()

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(30 << 18) for _ in range(3)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages()
    found = [pages() for _ in range(5)]
    assert statistics.median(found) < 1000, found  # elsewhere something else may be freed in between


def test_the_collector_passes_over_what_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))
    settle.cache_clear()
    settle()
    settle()
    settle.cache_clear()
    assert frozen == [1], "frozen again and again, no garbage of a process with many runs would ever go"
