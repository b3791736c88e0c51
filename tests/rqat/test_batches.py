"""A batch is split evenly, or it is said which number would do."""

from __future__ import annotations

import pytest

from rqat.batches import UnevenBatch, sequences_at_once, split_batch


@pytest.mark.parametrize("batch", [1, 6, 16])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_split_makes_up_the_batch_and_the_hint_of_a_refusal_helps(
    batch: int, micro_batch: int | None, processes: int
) -> None:
    try:
        at_once, passes = split_batch(batch, micro_batch, processes)
    except UnevenBatch as error:
        assert batch % ((micro_batch or 1) * processes)
        number = int(error.hint.removesuffix(".").split()[-1])
        changed = {"batch": batch, "micro_batch": micro_batch, "processes": processes, error.key: number}
        if error.key == "batch":
            assert split_batch(**changed)
        else:
            assert batch % number == 0
        return
    assert at_once * passes * processes == batch
    assert at_once == sequences_at_once(batch, micro_batch, processes) == (micro_batch or batch // processes)
