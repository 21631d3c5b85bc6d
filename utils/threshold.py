"""Section 3's threshold lambda, from the scores of held-out normal images, and how sure it is.

An image is an anomaly where its score is under lambda. Let lambda be the j-th smallest of n scores
of normal images that took no part in training. A further normal image is equally likely to fall
between any two of them or outside, so it is flagged with probability j / (n + 1), however scores
are distributed. Over the draw of the n images, the rate of normal images flagged has the
distribution Beta(j, n + 1 - j). Under lambda lie the images whose p-value is at most j / (n + 1),
which is at most the rate that was asked for.
"""

import math

import numpy as np
from scipy.stats import beta, binomtest, median_abs_deviation


def choose_threshold(scores: np.ndarray, false_alarm_rate: float) -> float:
    """Lambda for the highest rate of normal images flagged that is not above false_alarm_rate.

    scores: (n,) of held-out normal images, higher = more normal.

    Raises ValueError for a rate outside (0, 1) and for too few scores to set so low a rate.
    """
    return float(np.sort(scores)[_rank(len(scores), false_alarm_rate) - 1])


def false_alarm_interval(n: int, false_alarm_rate: float) -> tuple[float, float, float]:
    """The rate to expect of the threshold chosen on n scores, and the interval it lies in.

    (j / (n + 1), low, high): the central 95 % interval of Beta(j, n + 1 - j); scores without ties.
    Raises what `choose_threshold` raises.
    """
    rank = _rank(n, false_alarm_rate)
    low, high = beta.ppf([0.025, 0.975], rank, n + 1 - rank)
    return rank / (n + 1), float(low), float(high)


def threshold_statement(n: int, false_alarm_rate: float) -> str:
    """Which images are flagged, and how far the rate of normal ones among them is known.

    n: how many held-out images chose the threshold.
    """
    expected, low, high = (100 * each for each in false_alarm_interval(n, false_alarm_rate))
    return (
        f"Flagged where the p-value is at most {false_alarm_rate:g}: {expected:.1f} % of normal "
        f"images are expected to be (95 % interval: {low:.1f} to {high:.1f} %, by {n} held-out "
        "images)"
    )


def share_interval(count: int, n: int) -> tuple[float, float, float]:
    """count of n in percent, with the Clopper-Pearson 95 % confidence interval."""
    low, high = binomtest(count, n).proportion_ci(0.95, "exact")
    return 100 * count / n, 100 * float(low), 100 * float(high)


def p_values(held_out: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + how many of n held-out normal images score at most as high) / (1 + n): float64 (m,).

    Never 0. Of a normal image it is at most q with a probability of at most q, whatever q.
    """
    at_most = np.searchsorted(np.sort(held_out), scores, side="right")
    return (1 + at_most) / (1 + len(held_out))


def anomaly_scores(held_out: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """How many standard deviations scores (m,) lie below the median held-out one: float64 (m,).

    Robust, from the median absolute deviation: scores have a long tail, and one odd held-out image
    would multiply the ordinary standard deviation.
    """
    deviation = median_abs_deviation(held_out, scale="normal") or held_out.std() or 1.0
    return (np.median(held_out) - scores) / deviation


def min_held_out(false_alarm_rate: float) -> int:
    """How many held-out images a threshold needs. Raises ValueError for a rate outside (0, 1)."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false alarm rate is {false_alarm_rate}, expected between 0 and 1")
    if false_alarm_rate < 1e-12:
        raise ValueError(f"false alarm rate {false_alarm_rate:g} takes more images than there are")
    n = max(1, math.ceil(1 / false_alarm_rate) - 2)
    while 1 / (n + 1) > false_alarm_rate:
        n += 1
    return n


def _rank(n, false_alarm_rate):
    """j, the largest for which j / (n + 1), a p-value, is not above the rate."""
    needed = min_held_out(false_alarm_rate)
    if n < needed:
        raise ValueError(
            f"a false alarm rate of {false_alarm_rate:g} needs at least {needed} held-out normal "
            f"images, got {n}: hold out more, or allow a higher rate"
        )
    possible = np.arange(1, n + 1) / (n + 1)
    return int(np.searchsorted(possible, false_alarm_rate, side="right"))
