"""Intervals and tests against published values, enumeration and simulation."""

from itertools import product

import numpy as np
import pytest

from rqat.evals.stats import bootstrap, mcnemar, paired, wilson


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
