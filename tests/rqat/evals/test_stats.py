"""Intervals and tests against published values, enumeration and simulation."""

from itertools import product

import numpy as np
import pytest

from rqat.evals.stats import (
    bootstrap,
    bootstrap_of_means,
    bootstrap_of_ratio,
    mcnemar,
    paired,
    paired_means,
    pass_at_k,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(correct, n, low, high):
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_covers_and_is_symmetric():
    for n in (1, 7, 300):
        for correct in range(n + 1):
            low, high = wilson(correct, n)
            assert 0 <= low <= correct / n <= high <= 1
            assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low))
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson(5, 4)


def test_mcnemar_against_enumeration():
    for flips in range(1, 9):
        heads = [sum(tosses) for tosses in product((0, 1), repeat=flips)]
        for gained in range(flips + 1):
            far = abs(gained - flips / 2)
            expected = sum(abs(h - flips / 2) >= far for h in heads) / len(heads)
            assert mcnemar(gained, flips - gained) == pytest.approx(expected)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 2000) < 1e-300


def test_paired_counts_problems():
    result = paired([1, 1, 0, 1, 0, 1], [1, 0, 1, 0, 0, 0])
    assert (result.n, result.gained, result.lost) == (6, 3, 1)
    assert result.difference == pytest.approx(2 / 6)
    assert not result.shown
    assert paired([1] * 9, [0] * 9).shown
    assert paired([], []).p == 1.0
    with pytest.raises(ValueError, match="1 problems against 2"):
        paired([1], [1, 0])


def test_paired_with_several_seeds_counts_changed_means():
    result = paired([1.0, 2 / 3, 1 / 3], [1 / 3, 2 / 3, 2 / 3])
    assert (result.gained, result.lost) == (1, 1)


def test_bootstrap_agrees_with_theory_and_repeats():
    scores = np.random.default_rng(0).random(400)
    low, high = bootstrap(scores)
    half = 1.96 * scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.003)
    assert bootstrap(scores) == (low, high)
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    assert bootstrap([]) == (0.0, 0.0)


FIXED = [(((7 * i) % 5) > 1, ((3 * i) % 7) > 2) for i in range(120)]
"""Verdicts of two made-up models on 120 problems: 72 and 68 right."""


def test_intervals_and_tests_against_scipy_and_statsmodels():
    stats = pytest.importorskip("scipy.stats")
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    now, before = np.array(FIXED, dtype=float).T
    found = paired(now, before)
    table = [[sum(a == x and b == y for a, b in FIXED) for y in (True, False)] for x in (True, False)]
    assert found.p == pytest.approx(contingency.mcnemar(table, exact=True).pvalue, abs=1e-12)
    assert found.p == pytest.approx(stats.binomtest(found.gained, found.gained + found.lost).pvalue, abs=1e-12)
    assert wilson(int(now.sum()), 120) == pytest.approx(proportion.proportion_confint(now.sum(), 120, method="wilson"))
    theirs = stats.bootstrap(
        (now - before,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # The means are multiples of 1/120, and two bootstraps of 10,000 draws may differ by one.
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1 / 120 + 1e-9)


def test_the_exact_test_against_statsmodels_for_many_tables():
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    for gained in range(0, 30, 3):
        for lost in range(1, 40, 7):
            theirs = contingency.mcnemar([[50, gained], [lost, 9]], exact=True).pvalue
            assert mcnemar(gained, lost) == pytest.approx(theirs, abs=1e-12)


def test_problems_drawn_with_all_their_seeds_cover_the_true_difference():
    """No seed is drawn besides: the spread of a problem's mean over its seeds is in the problems' spread already."""
    rng = np.random.default_rng(0)
    covered, trials, problems, seeds = 0, 300, 60, 3
    for trial in range(trials):
        hard = rng.beta(1, 1, size=problems)  # a problem's chance to be solved; the second model's is 0.05 higher
        first = (rng.random((problems, seeds)) < hard[:, None]).mean(axis=1)
        second = (rng.random((problems, seeds)) < np.minimum(hard + 0.05, 1)[:, None]).mean(axis=1)
        low, high = bootstrap(second - first, draws=1000, seed=trial)
        truth = 0.05 - 0.05**2 / 2  # capped at 1
        covered += low <= truth <= high
    assert 0.91 <= covered / trials <= 0.98


def test_pass_at_k_against_enumeration():
    from itertools import combinations

    for n in (1, 3, 6):
        for correct in range(n + 1):
            for k in range(1, n + 1):
                drawn = [any(place < correct for place in chosen) for chosen in combinations(range(n), k)]
                assert pass_at_k(n, correct, k) == pytest.approx(sum(drawn) / len(drawn))
    with pytest.raises(ValueError, match="pass@4 of 1 in 3"):
        pass_at_k(3, 1, 4)


def test_bootstrap_of_means_of_one_group_is_the_bootstrap():
    scores = np.random.default_rng(2).random(50)
    assert bootstrap_of_means([scores]) == pytest.approx(bootstrap(scores), abs=5e-3)
    low, high = bootstrap_of_means([[0.0] * 10, [1.0] * 30])
    assert (low, high) == (0.5, 0.5)


def _rows(n):
    rng = np.random.default_rng(n)
    before = rng.gamma(2.0, 0.1, n)
    return before + rng.normal(0.01, 0.02, n), before, rng.integers(3, 60, n).astype(float)


@pytest.mark.parametrize("n", [3, 9, 40])
def test_sign_flips_agree_with_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    now, before, tokens = _rows(n)
    mine = paired_means(now, before, tokens)
    parts = (now - before) * tokens / tokens.sum()
    theirs = stats.permutation_test(
        (parts,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1), vectorized=True
    )
    # Few rows are counted out; else both are drawn, and 0.02 is four standard deviations of a share of 10,000.
    assert mine.p == pytest.approx(theirs.pvalue, abs=1e-12 if n < 14 else 0.02)
    assert mine.difference == pytest.approx(parts.sum())


def test_the_interval_of_a_mean_over_tokens_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    now, _, tokens = _rows(60)
    theirs = stats.bootstrap(
        (now, tokens),
        lambda x, w, axis: (x * w).sum(axis) / w.sum(axis),
        paired=True,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert bootstrap_of_ratio(now, tokens) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_equal_rows_show_no_difference():
    now, _, tokens = _rows(20)
    same = paired_means(now, now, tokens)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="0 rows"):
        paired_means([], [], [])
