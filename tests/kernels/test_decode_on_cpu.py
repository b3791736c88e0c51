"""A decoding step of one row on the CPU, which reads the cache where it is, against the same row among others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.decode import attend


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", [0, 40, 99])
@pytest.mark.parametrize("window", [0, 1, 41, 200])
@pytest.mark.parametrize("normed", [False, True])
def test_one_row_attends_as_among_others(position: int, window: int, normed: bool) -> None:
    slots, positions = torch.tensor([2, 0]), torch.tensor([position, 7])
    keys, values = (random(3, 2, 100, 16, seed=seed) for seed in (0, 1))
    qkv, (cos, sin) = random(2, 8 * 16, seed=2), random(2, 2, 16, seed=3)
    weights = [random(16, seed=seed) for seed in (4, 5)] if normed else [None, None]
    one_keys, one_values = keys.clone(), values.clone()
    both = attend(qkv, *weights, cos, sin, keys, values, slots, positions, 1e-6, window)
    one = attend(qkv[:1], *weights, cos[:1], sin[:1], one_keys, one_values, slots[:1], positions[:1], 1e-6, window)
    # The mask of the other way changes the order of sums.
    torch.testing.assert_close(one, both[:1], rtol=1e-5, atol=1e-6)
    assert torch.equal(one_keys[2], keys[2])
    assert torch.equal(one_values[2], values[2])
    assert not torch.equal(one_keys[0], keys[0])  # the other row's slot is left alone
