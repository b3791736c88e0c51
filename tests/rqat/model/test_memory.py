"""What a process keeps of the memory that it frees, and what its collector of garbage looks at."""

from __future__ import annotations

import gc
import platform
import resource
import statistics
import sys
from contextlib import suppress

import pytest
import torch

from rqat.model.memory import importing, keep_freed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library hands memory out in another way")
def test_freed_memory_is_used_again() -> None:
    """Three tensors of 30 MB at a time are more than glibc keeps of itself: they would take 22,000 new pages."""
    keep_freed()

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(30 << 18) for _ in range(3)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    # At first what other tests have left may lie between; and elsewhere something else may be freed meanwhile.
    found = [pages() for _ in range(12)]
    assert statistics.median(found[5:]) < 1000, found


def test_nothing_is_collected_while_a_command_imports_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are there already, the process is not the command's alone: its collector is left as it is."""
    before = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        with suppress(KeyError), importing():
            assert not gc.isenabled()
            raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()
