"""linear_kl against autograd on whole float64 logits, and its properties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqat_kernels.divergences import DIVERGENCES
from rqat_kernels.linear_kl import linear_kl

T, D, V = 37, 16, 50


def case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and heads of a student and a wider teacher, and labels of which some are ignored."""
    g = torch.Generator().manual_seed(seed)
    h, w = torch.randn(T, D, generator=g, dtype=torch.float64), torch.randn(V, D, generator=g, dtype=torch.float64)
    ht, wt = (
        torch.randn(T, D + 8, generator=g, dtype=torch.float64),
        torch.randn(V, D + 8, generator=g, dtype=torch.float64),
    )
    labels = torch.randint(0, V, (T,), generator=g)
    labels[::5] = -100
    return h.to(dtype), w.to(dtype), ht.to(dtype), wt.to(dtype), labels


def naive(h, w, ht, wt, *, divergence, beta=0.5, temperature=1.0, labels=None, label_share=0.0, count=None):
    """The docstring's formulas on whole logits, differentiated by autograd."""
    q, p = torch.softmax(h @ w.T / temperature, -1), torch.softmax(ht @ wt.T / temperature, -1)
    m = beta * p + (1 - beta) * q
    kl = lambda a, b: (a * (a / b).log()).sum(-1)  # noqa: E731
    value = {
        "forward": kl(p, q),
        "reverse": kl(q, p),
        "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skew": kl(p, m),
    }[divergence]
    loss = (1 - label_share) * temperature**2 * value.sum()
    if label_share:
        loss = loss + label_share * torch.nn.functional.cross_entropy(
            h @ w.T, labels, ignore_index=-100, reduction="sum"
        )
    return loss / (len(h) if count is None else count)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("extra", [{}, {"temperature": 2.5}, {"label_share": 0.3, "count": 11}, {"label_share": 1.0}])
def test_equals_autograd_in_float64(divergence: str, extra: dict[str, float]) -> None:
    h, w, ht, wt, labels = case()
    beta = 0.3
    losses, grads = [], []
    for fn in (naive, linear_kl):
        x, weight = h.clone().requires_grad_(), w.clone().requires_grad_()
        more = {} if fn is naive else {"chunk_elements": 7 * V}
        loss = fn(x, weight, ht, wt, divergence=divergence, beta=beta, labels=labels, **extra, **more)
        (3 * loss).backward()
        losses.append(loss.detach())
        grads.append((x.grad, weight.grad))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_teacher_equal_to_student_has_exactly_no_loss_and_no_gradient(divergence: str, dtype: torch.dtype) -> None:
    h, w, *_ = case(dtype=dtype)
    x = h.clone().requires_grad_()
    loss = linear_kl(x, w, h, w, divergence=divergence, temperature=2.0)
    loss.backward()
    assert loss.item() == 0.0
    assert not x.grad.any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_is_not_negative_and_finite_for_extreme_logits(divergence: str) -> None:
    h, w, ht, wt, _ = case(dtype=torch.float32)
    x = (60 * h).requires_grad_()
    loss = linear_kl(x, w, 60 * ht, wt, divergence=divergence)
    loss.backward()
    assert loss.item() >= 0
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_chunking_does_not_change_the_loss_and_counts_add_up() -> None:
    h, w, ht, wt, _ = case()
    whole = linear_kl(h, w, ht, wt)
    torch.testing.assert_close(linear_kl(h, w, ht, wt, chunk_elements=1), whole)
    parts = sum(linear_kl(h[s], w, ht[s], wt, count=T) for s in (slice(0, 10), slice(10, None)))
    torch.testing.assert_close(parts, whole)


def test_rows_of_padding_in_one_vocabulary_take_no_part() -> None:
    h, w, ht, wt, _ = case()
    wider = torch.cat([w, torch.randn(6, D, dtype=w.dtype)]).requires_grad_()
    loss = linear_kl(h, wider, ht, wt)
    loss.backward()
    torch.testing.assert_close(loss.detach(), linear_kl(h, w, ht, wt))
    assert not wider.grad[V:].any()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.25, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_padding_is_as_good_as_cut(divergence: str, temperature: float, dtype: torch.dtype) -> None:
    """Heads of two widths, both wider than the tokenizer, with large rows of padding."""
    h, w, ht, wt, labels = case(dtype=dtype)
    wide = torch.cat([w, 50 + torch.randn(6, D, dtype=dtype)])
    wider = torch.cat([wt, 50 + torch.randn(14, D + 8, dtype=dtype)])
    settings = {"divergence": divergence, "temperature": temperature, "labels": labels, "label_share": 0.2}
    results = []
    for head, teacher_head, tokens in ((w, wt, None), (wide, wider, V)):
        x, head = h.clone().requires_grad_(), head.clone().requires_grad_()
        loss = linear_kl(x, head, ht, teacher_head, vocabulary=tokens, **settings)
        loss.backward()
        results.append((loss.detach(), x.grad, head.grad[:V]))
        assert not head.grad[V:].any()
    for cut, masked in zip(*results, strict=True):
        torch.testing.assert_close(masked, cut)


def test_float32_is_close_to_float64() -> None:
    """Tolerance: 50 float32 log-probabilities of magnitude 10, each with a relative error of 1e-7."""
    exact = linear_kl(*case()[:4], divergence="jsd")
    torch.testing.assert_close(
        linear_kl(*case(dtype=torch.float32)[:4], divergence="jsd").double(), exact, rtol=1e-5, atol=0
    )


def test_an_unknown_divergence_or_an_impossible_beta_is_refused() -> None:
    h, w, ht, wt, _ = case()
    with pytest.raises(ValueError, match="Known: forward, reverse, jsd"):
        linear_kl(h, w, ht, wt, divergence="kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="between 0 and 1"):
        linear_kl(h, w, ht, wt, divergence="jsd", beta=1.0)
