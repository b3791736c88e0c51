"""Attention with repeatable gradients: the switch is on for them alone, and on a GPU two runs are equal to the bit."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from rqat.model import repeatable


class Seen(TorchDispatchMode):
    """Notes for every operation whether the switch was on."""

    def __init__(self) -> None:
        super().__init__()
        self.on: dict[str, bool] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.on[str(function.overloadpacket)] = torch.are_deterministic_algorithms_enabled()
        return function(*args, **(kwargs or {}))


def inputs(device: str = "cpu", *, seed: int = 0, length: int = 24, dtype: torch.dtype = torch.float32):
    made = torch.Generator(device=device).manual_seed(seed)
    return [
        torch.randn(4, 2, length, 32, generator=made, device=device, dtype=dtype).requires_grad_() for _ in range(3)
    ]


def grads(query, key, value, **given):
    weight = torch.ones(32, 32, device=query.device, dtype=query.dtype, requires_grad=True)
    functional.scaled_dot_product_attention(query, key, value, **given).matmul(weight).square().sum().backward()
    return [query.grad, key.grad, value.grad, weight.grad]


def test_gradients_are_those_of_plain_attention_and_only_attention_runs_with_the_switch_on():
    expected = grads(*inputs(), is_causal=True)
    with repeatable._switched():
        with Seen() as seen:
            found = grads(*inputs(), is_causal=True)
        assert not torch.are_deterministic_algorithms_enabled()
        assert deterministic.fill_uninitialized_memory is False
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    attention = {name: on for name, on in seen.on.items() if "attention" in name}
    assert len(attention) == 2, "attention and its gradient were seen"
    assert all(attention.values())
    assert not any(on for name, on in seen.on.items() if name not in {*attention, "aten.detach"})


def test_all_is_as_it_was_when_training_ends_or_fails():
    plain, filled = functional.scaled_dot_product_attention, deterministic.fill_uninitialized_memory

    def training():
        with repeatable._switched():
            assert functional.scaled_dot_product_attention is not plain
            torch.use_deterministic_algorithms(True)
            raise ValueError("ended")

    with pytest.raises(ValueError, match="ended"):
        training()
    assert functional.scaled_dot_product_attention is plain
    assert deterministic.fill_uninitialized_memory is filled
    assert not torch.are_deterministic_algorithms_enabled()
    assert repeatable.WORKSPACE not in os.environ


def test_nothing_changes_off_cuda_or_without_gradients():
    plain = functional.scaled_dot_product_attention
    with repeatable.repeatable_attention("cpu"):
        assert functional.scaled_dot_product_attention is plain
    with repeatable._switched(), torch.no_grad():
        found = functional.scaled_dot_product_attention(*inputs())
    assert torch.equal(found, plain(*inputs()))


def test_blocks_that_are_computed_again_have_the_same_gradients():
    """Recomputation runs within the backward pass; none of it sees the switch."""
    from torch.utils.checkpoint import checkpoint

    def block(*given):
        return functional.scaled_dot_product_attention(*given, is_causal=True).relu()

    def run():
        given = inputs()
        checkpoint(block, *given, use_reentrant=False).square().sum().backward()
        return [one.grad for one in given]

    expected = run()
    with repeatable._switched():
        found = run()
        assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("masked", [False, True])
def test_on_a_gpu_two_runs_are_equal_to_the_bit(masked):
    length = 768
    mask = torch.ones(length, length, device="cuda", dtype=torch.bool).tril() if masked else None
    with repeatable.repeatable_attention("cuda"):
        runs = [
            grads(*inputs("cuda", length=length, dtype=torch.bfloat16), attn_mask=mask, is_causal=not masked)
            for _ in range(8)
        ]
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))
