"""linear_topk_kl: the reference against autograd over k + 1 events, the kernels against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rqat_kernels.linear_kl import linear_kl
from rqat_kernels.topk_kl import linear_topk_kl, reference, topk_of

T, D, V, K = 9, 16, 300, 11


def case(seed: int = 0, *, t: int = T, v: int = V, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and heads of a student and a wider teacher, in float64."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return rand(t, D), scale * rand(v, D) / D**0.5, rand(t, D + 8), scale * rand(v, D + 8) / (D + 8) ** 0.5


def naive(h: Tensor, w: Tensor, ids: Tensor, logp: Tensor, tau: float, count: float) -> Tensor:
    """KL over k + 1 events, differentiated by autograd."""
    q = torch.softmax(h @ w.T / tau, -1)
    chosen = q.gather(-1, ids.long())
    outside = torch.ones_like(q).scatter(-1, ids.long(), 0)
    events_q = torch.cat([chosen, (q * outside).sum(-1, keepdim=True)], -1)
    p = logp.exp()
    events_p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    return tau**2 * (events_p * (events_p / events_q).log()).sum() / count


@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_equals_autograd_in_float64(tau: float) -> None:
    h, w, ht, wt = case()
    ids, logp = topk_of(ht, wt, K, temperature=tau, dtype=torch.float64)
    results = []
    for fn in (naive, linear_topk_kl):
        x, weight = h.clone().requires_grad_(), w.clone().requires_grad_()
        if fn is naive:
            loss = naive(x, weight, ids, logp, tau, 7)
        else:
            loss = linear_topk_kl(x, weight, ids, logp, temperature=tau, count=torch.tensor(7), chunk_elements=4 * V)
        (3 * loss).backward()
        results.append((loss.detach(), x.grad, weight.grad))
    for mine, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_the_cache_holds_the_teachers_likeliest_tokens_and_no_padding() -> None:
    _, _, ht, wt = case()
    wt[290:] = 10 * wt[:10]
    ids, logp = topk_of(ht, wt, K, vocabulary=290, dtype=torch.float64)
    best = torch.log_softmax((ht @ wt.T)[:, :290], -1).topk(K)
    assert torch.equal(ids, best.indices.int())
    torch.testing.assert_close(logp, best.values)


def test_all_but_one_token_is_the_whole_divergence() -> None:
    """With one token left the bucket is that token, so the loss is the full KL."""
    h, w, ht, wt = case(v=20)
    ids, logp = topk_of(ht, wt, 19, dtype=torch.float64)
    torch.testing.assert_close(linear_topk_kl(h, w, ids, logp), linear_kl(h, w, ht, wt))


def test_is_never_negative_and_at_most_the_whole_divergence() -> None:
    """Data processing: merging events cannot raise a KL. With bfloat16 log-probabilities up to their rounding."""
    for seed in range(5):
        h, w, ht, wt = case(seed)
        ids, logp = topk_of(ht, wt, K)
        loss = linear_topk_kl(h.float(), w.float(), ids, logp)
        assert 0 <= loss.item() <= linear_kl(h, w, ht, wt).item() * 1.01


def test_log_probabilities_that_add_up_to_more_than_one_are_normalized() -> None:
    h, w, _, _ = case()
    ids = torch.arange(3, dtype=torch.int32).expand(T, 3)
    logp = torch.tensor([0.5, 0.3, 0.25], dtype=torch.float64).log().expand(T, 3)
    normal = (logp.exp() / 1.05).log()
    torch.testing.assert_close(linear_topk_kl(h, w, ids, logp), linear_topk_kl(h, w, ids, normal))


def test_what_does_not_fit_is_refused() -> None:
    h, w, ht, wt = case()
    ids, logp = topk_of(ht, wt, K)
    with pytest.raises(ValueError, match="linear_kl takes all of it"):
        topk_of(ht, wt, V)
    with pytest.raises(ValueError, match="positions"):
        linear_topk_kl(h[1:], w, ids, logp)
    with pytest.raises(ValueError, match="not positive"):
        linear_topk_kl(h, w, ids, logp, temperature=0)


def by_kernel(
    monkeypatch: pytest.MonkeyPatch, inputs: tuple[Tensor, ...], dtype: torch.dtype, device: str, **settings: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss and both gradients of the kernel, all buffers poisoned, and of the reference in float64."""
    pytest.importorskip("triton")
    from rqat_kernels.topk_kl import kernel

    h, w, ids, logp = (part.to(device) for part in inputs)
    h, w = h.to(dtype), w.to(dtype)
    plan = settings.pop("plan", None) or kernel.Plan(student_tokens=6, splits=2, lanes=16, warps=1)
    settings = {"temperature": 1.0, "need_student": True, "need_weight": True, "tokens": len(w)} | settings
    expected = reference.linear_topk_kl(h.double(), w.double(), ids, logp, 17.0, chunk=1000, **settings)
    empty = torch.empty
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
        inverse = torch.full((1,), 1 / 17, device=device)
        mine = kernel.linear_topk_kl(h, w, ids, logp, inverse, plan=plan, **settings)
    return list(mine), list(expected)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize(("v", "tokens"), [(300, 300), (384, 260), (256, 256)])
def test_the_kernel_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, device: str, tau: float, v: int, tokens: int
) -> None:
    """Tolerance: float32 sums over 300 probabilities, and log-probabilities of magnitude 10."""
    h, w, ht, wt = case(v=v)
    w[tokens:] *= 30
    ids, logp = topk_of(ht, wt, K, temperature=tau, vocabulary=tokens)
    mine, exact = by_kernel(monkeypatch, (h, w, ids, logp), torch.float32, device, temperature=tau, tokens=tokens)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-5, atol=0)
    assert distance(mine[1], exact[1]) < 1e-5
    assert distance(mine[2], exact[2]) < 1e-5
    assert not mine[2][tokens:].any()


def test_a_teacher_without_a_tail_and_a_sure_student_stay_finite(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Logits of magnitude 500; the teacher's bucket is empty in some rows and the student's as good as."""
    h, w, ht, wt = case(scale=150.0)
    ids, logp = topk_of(ht, wt, K)
    mine, exact = by_kernel(monkeypatch, (h, w, ids, logp), torch.float32, device)
    assert all(torch.isfinite(part).all() for part in mine)
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-4, atol=0)


def test_the_operator_is_a_good_one() -> None:
    """Schema, fake implementation and autograd registration, as torch itself checks them."""
    h, w, ht, wt = case(v=30)
    ids, logp = topk_of(ht, wt, 4)
    arguments = (
        h.float().requires_grad_(), w.float().requires_grad_(), ids, logp, torch.tensor(9), 1.0, 2.0, 30, 0, True, True,
    )  # fmt: skip
    utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.rqat.linear_topk_kl.default, arguments, test_utils=utilities)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """A real vocabulary in the plan it would run with. Tolerance: bfloat16 keeps 8 bits of a logit and of a gradient,
    and a loss of k = 64 events averages few roundings."""
    from rqat_kernels.topk_kl import kernel

    h, w, ht, wt = (part.cuda() for part in case(t=300, v=151_936))
    ids, logp = topk_of(ht, wt, 64, vocabulary=151_669)
    plan = kernel.Plan(student_tokens=256)
    mine, exact = by_kernel(monkeypatch, (h, w, ids, logp), dtype, "cuda", tokens=151_669, plan=plan)
    loose = dtype == torch.bfloat16
    torch.testing.assert_close(mine[0].double(), exact[0], rtol=1e-3 if loose else 1e-5, atol=0)
    assert distance(mine[1], exact[1]) < (1e-2 if loose else 1e-5)
    assert distance(mine[2], exact[2]) < (1e-2 if loose else 1e-5)
