"""How sure an accuracy is: Wilson's interval, the exact paired test, a bootstrap over problems; and pass@k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def wilson(correct: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a share `correct / n` (Wilson 1927); (0, 1) without observations.

    Args:
        correct: problems solved; one that several seeds solved in part counts in part, which makes the interval wider.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n}")
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 exactly, but for rounding.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == n else min(1.0, middle + half)
    return low, high


BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Paired:
    """Two models on the same problems.

    Attributes:
        n: problems.
        gained: wrong before, right now.
        lost: right before, wrong now.
        difference: accuracy now minus accuracy before.
        low: lower end of the 95 % interval of the difference, by bootstrap over problems.
        high: upper end.
        p: two-sided p-value of the exact McNemar test.
    """

    n: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at 5 %."""
        return self.p < 0.05

    @property
    def says(self) -> str:
        """That in a word or three."""
        return NOT_SHOWN if not self.shown else BETTER if self.difference > 0 else WORSE


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test: is `gained` of `gained + lost` a fair coin? (McNemar 1947)"""
    flips = gained + lost
    tail = sum(comb(flips, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**flips)


def paired(now: Sequence[float], before: Sequence[float], *, seed: int = 0) -> Paired:
    """Compares two models problem by problem.

    Args:
        now: score of each problem: 1 right, 0 wrong, or the mean over seeds. The exact test counts a problem as gained
            or lost when its mean changed, which is the sign test for several seeds and McNemar's for one.
        before: the same problems, in the same order, by the other model.
    """
    if len(now) != len(before):
        raise ValueError(f"{len(now)} problems against {len(before)}")
    change = np.asarray(now, dtype=float) - np.asarray(before, dtype=float)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    low, high = bootstrap(change, seed=seed)
    difference = float(change.mean()) if len(change) else 0.0
    return Paired(len(change), gained, lost, difference, low, high, mcnemar(gained, lost))


def bootstrap(scores: Sequence[float] | np.ndarray, *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, by drawing problems with replacement; (0, 0) without problems."""
    values = np.asarray(scores, dtype=float)
    if len(values) == 0:
        return 0.0, 0.0
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        # In pieces: 10,000 draws of 10,000 problems would be a gigabyte.
        [values[rng.integers(0, len(values), size=(500, len(values)))].mean(axis=1) for _ in range(-(-draws // 500))]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_of_means(groups: Sequence[Sequence[float]], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over groups of their means, by drawing problems within every group."""
    rng = np.random.default_rng(seed)
    means = np.zeros(draws)
    for scores in groups:
        values = np.asarray(scores, dtype=float)
        for start in range(0, draws, 500):
            drawn = values[rng.integers(0, len(values), size=(min(500, draws - start), len(values)))]
            means[start : start + 500] += drawn.mean(axis=1) / len(groups)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedMeans:
    """Two models on the same rows, each with a mean over its tokens.

    Attributes:
        n: rows.
        difference: mean over all tokens now minus before.
        low: lower end of its 95 % interval, by bootstrap over rows.
        high: upper end.
        p: two-sided p-value of the test that flips the signs of the rows' differences (Fisher 1935, section 21).
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


def paired_means(
    now: Sequence[float] | np.ndarray,
    before: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedMeans:
    """Compares two models row by row.

    Args:
        now: mean of each row.
        before: of the same rows, in the same order, by the other model.
        weights: tokens of each row, more than 0.
        draws: of the bootstrap; and of sign flips, where there are more than that.
    """
    weight = np.asarray(weights, dtype=float)
    change = np.asarray(now, dtype=float) - np.asarray(before, dtype=float)
    if not len(change) == len(weight) > 0:
        raise ValueError(f"{len(change)} rows, {len(weight)} weights")
    low, high = bootstrap_of_ratio(change, weight, draws=draws, seed=seed)
    parts = change * weight / weight.sum()
    return PairedMeans(len(change), float(parts.sum()), low, high, _sign_flips(parts, draws, seed))


def _sign_flips(parts: np.ndarray, draws: int, seed: int) -> float:
    """How often a sum is as far from 0 as it is when every part may as well have the other sign; exact where few."""
    # As far but for rounding: the sum itself, and that of all signs flipped, are among those counted.
    bound = abs(float(parts.sum())) - 1e-12 * float(np.abs(parts).sum())
    n = len(parts)
    if 2**n <= draws:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ parts) >= bound).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    for start in range(0, draws, step := _at_once(n)):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(step, draws - start), n))
        as_far += int((np.abs(signs @ parts) >= bound).sum())
    return (1 + as_far) / (1 + draws)


def _at_once(n: int) -> int:
    """Draws of `n` rows that are made together: 10,000 of 10,000 would be a gigabyte."""
    return max(1, min(500, 5_000_000 // n))


def bootstrap_of_ratio(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | np.ndarray, *, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean over tokens, by drawing rows with replacement.

    Args:
        values: mean of each row.
        weights: tokens of each row, more than 0.
    """
    weight = np.asarray(weights, dtype=float)
    sums = np.asarray(values, dtype=float) * weight
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, step := _at_once(len(sums))):
        drawn = rng.integers(0, len(sums), size=(min(step, draws - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / weight[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of `k` completions is right, of `n` of which `correct` are; arXiv 2107.03374, equation 1."""
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} in {n}")
    return 1.0 - comb(n - correct, k) / comb(n, k)
