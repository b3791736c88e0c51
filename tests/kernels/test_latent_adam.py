"""latent_adam: the kernel against the steps done one after the other, the reference against torch's own Adam."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rqat import Scheme
from rqat_kernels.dispatch import interpreted
from rqat_kernels.grid import fit_minmax, requantize
from rqat_kernels.latent_adam import Rates, latent_adam, reference
from tests.toys import built

pytest.importorskip("triton", reason="the kernel is written in it; the dev extra has it")

LAYERS = {32: [(6, 64), (3, 96)], 48: [(5, 48)], 128: [(20, 128), (3, 256)], 80: [(2, 80), (7, 80)]}
"""Shapes of layers by size of group: of different height, rows that fill no tile, groups that are no power of 2."""


def state(group: int, device: str, dtype: torch.dtype, *, frozen: bool = False, bits: int = 2) -> dict[str, Any]:
    """All that is written is not a number before, where it can be."""
    g = torch.Generator().manual_seed(group)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    rows = sum(out * features for out, features in LAYERS[group]) // group
    w = normal(rows, group)
    s, z = fit_minmax(w, 1, 2**bits - 1, symmetric=False)
    moments = [[normal(*shape) * 0.1, normal(*shape).square()] for shape in ((rows, group), (rows, 1), (rows, 1))]
    if frozen:
        moments[1], moments[2] = [], []
    made = {
        "weights": [torch.full(shape, torch.nan, dtype=dtype) for shape in LAYERS[group]],
        "latent": [1.2 * w, *moments[0]],
        "origin": s,
        "ratio": [0.01 * normal(rows, 1), *moments[1]],
        "zero": [z + 0.3 * normal(rows, 1), *moments[2]],
    }
    return {
        key: value.to(device) if isinstance(value, Tensor) else [tensor.to(device) for tensor in value]
        for key, value in made.items()
    }


def rates(*, decoupled: bool = True, step: int = 3, in_codes: bool = False) -> Rates:
    return Rates(1e-2, 1e-2, 1e-1, 0.1, decoupled, 0.9, 0.99, 1e-8, step, in_codes)


def gradients(group: int, seed: int, device: str, dtype: torch.dtype) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g).to(device, dtype) for shape in LAYERS[group]]


def close(mine: dict[str, Any], exact: dict[str, Any]) -> None:
    """One part in a million of a latent and of what it is made of, of which a few may be larger than the sum."""
    for key in ("latent", "ratio", "zero"):
        for one, other in zip(mine[key], exact[key], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for one, other in zip(mine["weights"], exact["weights"], strict=True):
        # Nearer to the border of two codes than that, either code is right; so is a scale's last bit.
        assert not one.isnan().any()
        assert (one != other).float().mean() < 0.01


@pytest.mark.parametrize(("decoupled", "in_codes"), [(True, False), (False, False), (True, True), (False, True)])
@pytest.mark.parametrize("group", LAYERS)
def test_kernel_equals_the_steps_one_after_the_other(group: int, decoupled: bool, in_codes: bool, device: str) -> None:
    from rqat_kernels.latent_adam import kernel

    mine, exact = state(group, device, torch.float16), state(group, device, torch.float16)
    for step in range(2):
        grads = gradients(group, step, device, torch.float16)
        if step and len(grads) > 1:
            grads[1] = None
        numbers = rates(decoupled=decoupled, step=step + 1, in_codes=in_codes)
        kernel.latent_adam(**mine, grads=grads, max_code=3, rates=numbers)
        reference.latent_adam(**exact, grads=grads, max_code=3, rates=numbers)
        close(mine, exact)


@pytest.mark.parametrize("decoupled", [True, False])
def test_in_codes_all_that_a_latent_moves_is_multiplied_by_where_its_scale_started(decoupled: bool) -> None:
    moved = []
    for in_codes in (False, True):
        held = state(32, "cpu", torch.float32)
        before = held["latent"][0].clone()
        numbers = rates(decoupled=decoupled, in_codes=in_codes)
        reference.latent_adam(**held, grads=gradients(32, 0, "cpu", torch.float32), max_code=3, rates=numbers)
        moved.append(held["latent"][0] - before)
    torch.testing.assert_close(moved[1], moved[0] * held["origin"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(moved[1], moved[0], rtol=1e-2)


def test_many_stacks_are_stepped_at_once_and_not_at_all_when_refused(device: str) -> None:
    """Groups of several sizes, with and without trained scales; gradients that move between steps, and are missing."""
    from rqat_kernels.latent_adam import kernel

    frozen = {32: False, 48: True, 128: False}
    mine, exact = (
        [state(group, device, torch.float16, frozen=still) for group, still in frozen.items()] for _ in range(2)
    )
    launches = kernel.Launches([kernel.Stack(**stack) for stack in mine])
    refused = torch.zeros(1, dtype=torch.int32, device=device)
    for step in range(2):
        grads = [gradients(group, step, device, torch.float16) for group in frozen]
        grads[2][0] = None
        flat = [grad for some in grads for grad in some]
        numbers = rates(step=step + 1)
        before = [stack["latent"][0].clone() for stack in mine]
        launches.step(flat, 3, numbers, refused + 1)
        assert all(torch.equal(one, stack["latent"][0]) for one, stack in zip(before, mine, strict=True))
        launches.step(flat, 3, numbers, refused)
        for one, other, some in zip(mine, exact, grads, strict=True):
            reference.latent_adam(**other, grads=some, max_code=3, rates=numbers)
            close(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_number_is_searched_for_infinities(bad: float, device: str) -> None:
    from rqat_kernels.latent_adam import kernel

    search = kernel.Search(torch.device(device))
    sizes = [1, 7, kernel.BLOCK, kernel.BLOCK + 1, 0, 3 * kernel.BLOCK - 5]
    tensors = [torch.full((size,), 6e4, dtype=torch.float16, device=device) for size in sizes]
    tensors.append(torch.full((5, 3), -3e38, device=device).t())
    tensors.append(torch.ones(9, device=device)[1:])
    assert not search.start(tensors).any()
    assert search.all_finite()
    for tensor, place in ((0, 0), (1, 6), (2, 0), (3, kernel.BLOCK), (5, 2 * kernel.BLOCK + 3), (6, (2, 4)), (7, 7)):
        kept = tensors[tensor][place].clone()
        tensors[tensor][place] = bad
        assert search.start(tensors).any()
        assert not search.all_finite()
        tensors[tensor][place] = kept
    assert not search.start(tensors).any()
    assert search.all_finite()


def test_frozen_scales_and_zero_points_stay(device: str) -> None:
    from rqat_kernels.latent_adam import kernel

    mine, exact = (state(128, device, torch.float32, frozen=True) for _ in range(2))
    before = [mine[key][0].clone() for key in ("ratio", "zero")]
    grads = gradients(128, 0, device, torch.float32)
    kernel.latent_adam(**mine, grads=grads, max_code=3, rates=rates())
    reference.latent_adam(**exact, grads=grads, max_code=3, rates=rates())
    close(mine, exact)
    assert torch.equal(mine["ratio"][0], before[0])
    assert torch.equal(mine["zero"][0], before[1])


def test_the_model_holds_what_scale_of_and_requantize_say(device: str) -> None:
    """To the bit: a checkpoint is written from those."""
    from rqat_kernels.grid import kernel as grid
    from rqat_kernels.latent_adam import kernel

    mine = state(128, device, torch.float32)
    kernel.latent_adam(**mine, grads=gradients(128, 1, device, torch.float32), max_code=3, rates=rates())
    scale = kernel.scale_of(mine["origin"], mine["ratio"][0])
    w_hat = grid.requantize(mine["latent"][0], scale, mine["zero"][0].round(), 3)
    assert torch.equal(torch.cat([weight.view(-1, 128) for weight in mine["weights"]]), w_hat)


def test_scales_are_snapped_and_those_of_the_reference(device: str) -> None:
    from rqat_kernels.grid import snap_scale
    from rqat_kernels.latent_adam import kernel

    g = torch.Generator().manual_seed(0)
    origin = snap_scale(torch.logspace(-7, 6, 3001)).to(device)
    ratio = torch.randn(3001, generator=g).to(device)
    mine, exact = kernel.scale_of(origin, ratio), reference.scale_of(origin, ratio)
    assert torch.equal(mine, snap_scale(mine))
    # The two exponentials differ in their last bits; a product that close to a tie may go either way.
    assert (mine != exact).float().mean() < 2e-3
    torch.testing.assert_close(mine, exact, rtol=2**-7, atol=0)


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.Adam])
def test_reference_is_torchs_own_adam(inner: type[torch.optim.Adam]) -> None:
    """In float64; what torch does to latents with the gradient of latent_step, for several steps."""
    from rqat_kernels.latent_step import latent_step

    values = {
        key: value.double() if isinstance(value, Tensor) else [tensor.double() for tensor in value]
        for key, value in state(32, "cpu", torch.float64, frozen=True).items()
    }
    for moment in values["latent"][1:]:
        moment.zero_()
    w = values["latent"][0].clone().requires_grad_()
    adam = inner([w], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99))
    scale = reference.scale_of(values["origin"], values["ratio"][0])
    for step in range(1, 4):
        grads = gradients(32, step, "cpu", torch.float64)
        stacked = torch.cat([grad.view(-1, 32) for grad in grads if grad is not None])
        w.grad = latent_step(stacked, w.detach(), scale, values["zero"][0].round(), 3)[0]
        adam.step()
        numbers = rates(decoupled=inner is torch.optim.AdamW, step=step)
        latent_adam(**values, grads=grads, max_code=3, rates=numbers)
        torch.testing.assert_close(values["latent"][0], w.detach(), rtol=1e-12, atol=1e-12)


@pytest.fixture
def through_the_kernel(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Sends the optimizer through the kernel on the CPU too, if it is interpreted."""
    if device == "cpu":
        if not interpreted():
            pytest.skip(reason="neither a GPU nor the interpreter")
        monkeypatch.setattr("rqat_kernels.latent_adam.use_triton", lambda *tensors: True)
        monkeypatch.setattr("rqat_kernels.op.plain_call", lambda tensor: False)


@pytest.mark.usefixtures("through_the_kernel")
def test_the_optimizer_goes_on_from_its_state_by_either_way(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps through the kernel; the next one by torch from the saved state, and through the kernel, agree."""
    from rqat.train.fused import FusedAdam

    taken = []
    step_fused = FusedAdam.step
    monkeypatch.setattr(FusedAdam, "step", lambda *a: (taken.append(1), step_fused(*a))[1])
    scheme = Scheme.parse("w2g16")

    def make() -> tuple[torch.nn.Module, Any]:
        return built(scheme, device=device, weight_decay=0.1, other_lr=None, lr=1e-3, scale_lr=1e-3)

    def feed(model: torch.nn.Module, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=g).to(parameter)

    model, optimizer = make()
    for step in range(3):
        feed(model, step)
        optimizer.step()
    assert len(taken) == 3
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    results = []
    for way in ("kernel", "torch"):
        other_model, other = make()
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        if way == "torch":
            monkeypatch.setattr(other._fused, "taken", lambda buckets: [])
        feed(other_model, 3)
        other.step()
        results.append(other)
    feed(model, 3)
    optimizer.step()
    assert len(taken) == 5
    for name, latent in optimizer.latents().items():
        assert torch.equal(latent, results[0].latents()[name])
        torch.testing.assert_close(latent, results[1].latents()[name], rtol=1e-6, atol=1e-6)
    state = [optimizer.inner.state_dict()["state"], results[1].inner.state_dict()["state"]]
    for key, moments in state[0].items():
        assert list(moments) == list(state[1][key])
        assert float(moments["step"]) == float(state[1][key]["step"]) == 4
        torch.testing.assert_close(moments["exp_avg"], state[1][key]["exp_avg"], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("through_the_kernel")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(device: str, bad: float) -> None:
    from rqat.errors import NumericsError

    model, optimizer = built(Scheme.parse("w2g16"), device=device)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[3].weight.grad[0, 0] = bad
    before = [parameter.detach().clone() for parameter in model.parameters()]
    latents = {name: latent.clone() for name, latent in optimizer.latents().items()}
    with pytest.raises(NumericsError, match=r"step 1.*'0', '3'"):
        optimizer.step()
    assert all(torch.equal(latents[name], latent) for name, latent in optimizer.latents().items())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model[3].weight.grad[0, 0] = 0
    model[1].weight.grad[0] = bad
    with pytest.raises(NumericsError, match=r"step 2.*'1.weight'"):
        optimizer.step()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bfloat16 and large groups are not for the interpreter")
@pytest.mark.parametrize("group", [64, 128, 1000, 3072, 12288])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_and_large_groups(group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from rqat_kernels.latent_adam import kernel

    monkeypatch.setitem(LAYERS, group, [(300, group), (77, 2 * group)])
    mine, exact = state(group, "cuda", dtype, bits=3), state(group, "cuda", dtype, bits=3)
    for step in range(2):
        grads = gradients(group, step, "cuda", dtype)
        numbers = rates(step=step + 1)
        kernel.latent_adam(**mine, grads=grads, max_code=7, rates=numbers)
        reference.latent_adam(**exact, grads=grads, max_code=7, rates=numbers)
    # Where an exponential falls on the other side of a tie, a row's scale has another last bit, and some of its latents
    # count as inside the grid in one and as outside in the other.
    for key, rtol in (("latent", 2e-6), ("ratio", 1e-4), ("zero", 1e-4)):
        for one, other in zip(mine[key], exact[key], strict=True):
            assert torch.isclose(one, other, rtol=rtol, atol=rtol).float().mean() > 0.995
    for one, other in zip(mine["weights"], exact["weights"], strict=True):
        assert (one == other).float().mean() > 0.99
    # To the bit: every thread of a row must have worked with the one scale that was stored.
    scale = kernel.scale_of(mine["origin"], mine["ratio"][0])
    w_hat = requantize(mine["latent"][0], scale, mine["zero"][0].round(), 7, dtype)
    assert torch.equal(torch.cat([weight.view(-1, group) for weight in mine["weights"]]), w_hat)


@pytest.mark.slow
def test_nothing_is_stored_before_all_is_loaded() -> None:
    """A row's numbers are loaded by every warp and stored by one; the interpreter knows no warps."""
    folder = Path(__file__).parent / "static"
    script = (
        "import re, sys; sys.path.insert(0, sys.argv[1])\n"
        "import latent_adam, sass\n"
        "for case in latent_adam.CASES:\n"
        "    if case.kernel.endswith(':_latent_adam'):\n"
        "        code = ''.join(re.findall(r'\\b(LDG|BAR|STG)\\b', sass.listing(case, 90)))\n"
        "        assert re.fullmatch('(BAR)*(LDG)+(BAR)+((BAR)|(STG))+', code), code\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
