"""linear_kl's Triton rows, by the interpreter or on a GPU, against the reference in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from rqat_kernels.divergences import DIVERGENCES
from rqat_kernels.linear_kl import kernel, linear_kl, reference
from rqat_kernels.linear_kl.rows import KINDS, PADDING, VECTOR, _take, load_end, nothing

SMALL = kernel.Plan(student_tokens=6, teacher_tokens=4, splits=2, lanes=32, warps=1)
"""Several chunks of both kinds and two programs a row, of which the second has less to do."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer of the launcher starts as NaN."""
    empty = torch.empty

    def make(*shape: Any, **settings: Any) -> Tensor:
        made = empty(*shape, **settings)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(kernel.torch, "empty", make)


def case(
    device: str, *, t: int = 11, v: int = 571, wider: tuple[int, int] = (5, 0), scale: float = 2.0, seed: int = 0
) -> dict[str, Tensor]:
    """Student and teacher of different widths; each head has rows of its own beyond `v`."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    labels = torch.randint(0, v, (t,), generator=g)
    labels[::4] = -100
    made = {
        "student": rand(t, 24),
        "weight": scale * rand(v + wider[0], 24) / 24**0.5,
        "teacher": rand(t, 40),
        "teacher_weight": scale * rand(v + wider[1], 40) / 40**0.5,
        "labels": labels,
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def both(
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    plan: kernel.Plan | None,
    *,
    tokens: int,
    divergence: str = "forward",
    temperature: float = 1.0,
    label_share: float = 0.0,
    count: float = 17,
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and both gradients of the kernel, and of the reference in float64 on the same rounded inputs."""
    rounded = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    settings: dict[str, Any] = {
        "divergence": divergence, "beta": 0.3, "temperature": temperature, "label_share": label_share,
        "tokens": tokens, "need_student": True, "need_weight": True,
    }  # fmt: skip
    inverse = torch.full((1,), 1 / count, device=rounded["student"].device)
    mine = kernel.linear_kl(**rounded, inverse=inverse, plan=plan, **settings)
    exact = {k: v.double() if v.is_floating_point() else v for k, v in rounded.items()}
    return list(mine), list(reference.linear_kl(**exact, divisor=count, chunk=1000, **settings))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize(
    "extra", [{}, {"temperature": 2.5}, {"label_share": 0.3}, {"label_share": 0.3, "temperature": 0.7}]
)
def test_equals_the_reference(device: str, divergence: str, extra: dict[str, float]) -> None:
    """Tolerance: sums of 571 float32 products of probabilities and logits of magnitude 8."""
    mine, exact = both(case(device), torch.float32, SMALL, tokens=571, divergence=divergence, **extra)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-5, atol=0)
    assert distance(mine[1], exact[1]) < 1e-5
    assert distance(mine[2], exact[2]) < 1e-5


def test_every_form_here_is_a_divergence() -> None:
    assert set(KINDS) == {name for name, divergence in DIVERGENCES.items() if divergence.fused}
    assert sorted(KINDS.values()) == list(range(1, len(KINDS) + 1))


def test_labels_alone_need_no_teacher(device: str) -> None:
    inputs = case(device, t=5)
    inputs["teacher"].fill_(torch.nan)
    mine, exact = both(inputs, torch.float32, SMALL, tokens=571, label_share=1.0)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-5, atol=0)
    assert distance(mine[1], exact[1]) < 1e-5


@pytest.mark.parametrize(("v", "tokens"), [(512, 512), (513, 300), (40, 7), (768, 511)])
def test_vocabularies_of_every_kind_of_end(device: str, v: int, tokens: int) -> None:
    """Tiles are 256 wide: whole ones, a last one that is nearly empty, whole programs of padding, one short tile."""
    inputs = case(device, t=3, v=v, wider=(0, 9))
    inputs["labels"].clamp_(max=tokens - 1)
    for head in ("weight", "teacher_weight"):
        inputs[head][tokens:] *= 50
    mine, exact = both(inputs, torch.float32, SMALL, tokens=tokens, label_share=0.5, divergence="reverse")
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-5, atol=0)
    assert distance(mine[1], exact[1]) < 1e-5
    assert distance(mine[2], exact[2]) < 1e-5
    assert not mine[2][tokens:].any()


@pytest.mark.parametrize("divergence", KINDS)
def test_a_teacher_equal_to_the_student_has_no_loss_and_no_gradient(device: str, divergence: str) -> None:
    inputs = case(device, t=3)
    inputs |= {"teacher": inputs["student"], "teacher_weight": inputs["weight"]}
    mine, _ = both(inputs, torch.float32, SMALL, tokens=571, divergence=divergence, temperature=2.0)
    assert mine[0].item() == 0
    assert not mine[1].any()
    assert not mine[2].any()


@pytest.mark.parametrize("divergence", KINDS)
def test_extreme_logits_stay_finite(device: str, divergence: str) -> None:
    """Logits of magnitude 500: probabilities of exactly 0 and 1 on both sides."""
    mine, exact = both(case(device, t=4, scale=150.0), torch.float32, SMALL, tokens=571, divergence=divergence)
    assert all(torch.isfinite(part).all() for part in mine)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-4, atol=1e-6)


@triton.jit
def statistics_of_a_tile(logits, sums, ends, tokens, c, LANES: tl.constexpr, FAST: tl.constexpr):
    """Sums and maxima of the lanes of one tile, with the vocabulary ending in it."""
    lanes = tl.arange(0, LANES)
    columns = lanes[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    x = load_end(logits, columns, tokens, LANES * VECTOR)
    top, total = nothing(LANES)
    top, total, _, _, _, _ = _take(x, x, top, total, top, total, total, total, c, 0, False, FAST)
    tl.store(sums + lanes, total)
    tl.store(ends + lanes, top)


@pytest.mark.parametrize("tau", [0.7, 1.0, 2.0, 2.5])
def test_a_lane_of_padding_holds_nothing(device: str, tau: float) -> None:
    """A fused `x c - max c` rounds once. The interpreter has none, hence its result in exact numbers too."""
    logits = torch.randn(256, device=device) - 50
    sums, ends = torch.empty(32, device=device), torch.empty(32, device=device)
    fast = not kernel.interpreted()
    statistics_of_a_tile[(1,)](logits, sums, ends, 100, kernel.LOG2E / tau, 32, fast, num_warps=1)
    assert (sums[:13] > 0.99).all()
    assert not sums[13:].any()
    c = torch.tensor(kernel.LOG2E / tau, dtype=torch.float32, device=device)
    for start in (ends[12], ends[13]):
        fused = torch.tensor(PADDING.value, device=device).double() * c.double() - (start * c).double()
        assert fused < -1000


@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_nan_is_not_hidden(device: str, divergence: str, whose: str) -> None:
    inputs = case(device, t=3)
    inputs[whose][1, 2] = torch.nan
    mine, _ = both(inputs, torch.float32, SMALL, tokens=571, divergence=divergence)
    assert torch.isnan(mine[0])
    assert torch.isnan(mine[1][1]).all()
    assert torch.isfinite(mine[1][[0, 2]]).all()


def test_no_tokens_and_gradients_not_asked_for(device: str) -> None:
    inputs = {
        name: tensor[:0] if name in ("student", "teacher", "labels") else tensor
        for name, tensor in case(device).items()
    }
    mine, _ = both(inputs, torch.float32, SMALL, tokens=571)
    assert mine[0].item() == 0
    assert mine[1].shape == (0, 24)
    assert not mine[2].any()


@pytest.mark.parametrize("few", [16, 1])
def test_weight_gradients_of_chunks_add_up(device: str, few: int) -> None:
    """Tolerance: a rounding to bfloat16 is 0.17 % in the mean; without `addmm` to float32 products are rounded too."""
    g = torch.Generator().manual_seed(0)
    grads, hidden = torch.randn(8, 64, 96, generator=g), torch.randn(8, 64, 32, generator=g)
    grads, hidden = grads.to(device, torch.bfloat16), hidden.to(device, torch.bfloat16)
    sums = kernel.WeightGradient(torch.ones(100, 32, dtype=torch.bfloat16, device=device), 96, 8, few)
    for grad, states in zip(grads, hidden, strict=True):
        sums.add(grad, states)
    exact = grads.flatten(0, 1).double().T @ hidden.flatten(0, 1).double()
    assert distance(sums.result()[:96], exact) < (5e-3 if few == 16 else 3e-3)
    assert not sums.result()[96:].any()


@pytest.mark.parametrize("parts", [1, 4, 3])
def test_hidden_gradients_from_parts_of_the_vocabulary(device: str, parts: int) -> None:
    """In one product, in four, and in one again where the vocabulary does not divide."""
    g = torch.Generator().manual_seed(0)
    buffer = torch.randn(5, 192, generator=g).to(device)
    head, out = torch.randn(160, 24, generator=g).to(device), torch.empty(5, 24, device=device)
    kernel.hidden_gradient(buffer[:, :160], head, out, parts)
    assert distance(out, buffer[:, :160].double() @ head.double()) < 1e-5


def test_rows_may_be_taken_a_few_at_a_time(device: str) -> None:
    plans = (SMALL, replace(SMALL, rows=3))
    one, other = (both(case(device), torch.float32, plan, tokens=571, label_share=0.3)[0] for plan in plans)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_plans_of_any_size_fit() -> None:
    for tokens, width in ((8192, 151936), (1, 151936), (1100, 151936), (100_000, 32_000), (7, 30)):
        plan = kernel.Plan().sized(tokens, width, 2)
        assert 0 < plan.teacher_tokens <= plan.student_tokens <= tokens
        assert (plan.student_tokens + plan.teacher_tokens) * width * 2 <= kernel.MEMORY
        assert plan.splits * plan.lanes * 8 < 2 * (width + 8 * plan.lanes)


def test_the_operator_is_a_good_one() -> None:
    """Schema, fake implementation and autograd registration, as torch itself checks them."""
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in case("cpu", t=4, v=30).items()}
    student, weight = inputs["student"].requires_grad_(), inputs["weight"].requires_grad_()
    arguments = (
        student, weight, inputs["teacher"], inputs["teacher_weight"], inputs["labels"], torch.tensor(9), 1.0, "jsd",
        0.3, 2.0, 0.25, 30, 0, True, True,
    )  # fmt: skip
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.rqat.linear_kl.default, arguments, test_utils=utilities)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("divergence", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("label_share", [0.0, 0.2])
def test_on_a_gpu(divergence: str, dtype: torch.dtype, label_share: float) -> None:
    """A real vocabulary's width in the plan it would run with.

    Tolerance: logits and gradients are rounded to 8 bits (bfloat16); the loss averages the roundings of 150,000 logits
    and 300 positions. Of the gradients' error most is that of the logits: in float64 but for those, dW is 2.5e-3 away,
    and 5.4e-3 with the reverse divergence, a product of q and log q; sums of two chunks in bfloat16 add 5e-4.
    """
    inputs = case("cuda", t=300, v=151_669, wider=(267, 300), scale=1.0)
    plan = kernel.Plan(student_tokens=256, teacher_tokens=112)
    mine, exact = both(inputs, dtype, plan, tokens=151_669, divergence=divergence, label_share=label_share)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-4, atol=0)
    limit = 1e-5 if dtype == torch.float32 else 1e-2 if divergence == "reverse" else 5e-3
    assert distance(mine[1], exact[1]) < limit
    assert distance(mine[2], exact[2]) < limit


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("count", [None, 7, "tensor"])
def test_entry_on_a_gpu_does_not_wait(count: Any) -> None:
    """The entry, forward and backward, with synchronization forbidden; against the same call in plain torch.

    Tolerance: bfloat16 logits of magnitude 8 alone move dW by 1e-2, dh by 4e-3 and the loss by 2e-4.
    """
    inputs = case("cuda", t=64, v=2000)
    inputs["labels"].clamp_(max=1989)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        made = {k: v.to(torch.bfloat16).to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        student, weight = made["student"].requires_grad_(), made["weight"].requires_grad_()
        divisor = torch.tensor(7, device="cuda") if count == "tensor" else count
        try:
            torch.cuda.set_sync_debug_mode("error" if dtype == torch.bfloat16 else "default")
            loss = linear_kl(
                student, weight, made["teacher"], made["teacher_weight"], labels=made["labels"], label_share=0.1,
                count=divisor, vocabulary=1990,
            )  # fmt: skip
            (3 * loss).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append((loss.detach(), student.grad, weight.grad))
    mine, exact = results
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-3, atol=0)
    assert distance(mine[1], exact[1]) < 1e-2
    assert distance(mine[2], exact[2]) < 2e-2
    assert not mine[2][1990:].any()
