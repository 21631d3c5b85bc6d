"""Section 3's threshold lambda, from the scores of held-out normal images, and how sure it is.

An image is an anomaly where its score is under lambda. Let lambda be the j-th smallest of n scores
of normal images that took no part in training. A further normal image is equally likely to fall
between any two of them or outside, so it is flagged with probability j / (n + 1), however scores
are distributed. Over the draw of the n images, the rate of normal images flagged has the
distribution Beta(j, n + 1 - j).
"""

import math

import numpy as np
from scipy.stats import beta


def choose_threshold(scores: np.ndarray, false_alarm_rate: float) -> float:
    """Lambda for the highest rate of normal images flagged that is not above false_alarm_rate.

    scores: (n,) of held-out normal images, higher = more normal.

    Raises ValueError for a rate outside (0, 1) and for too few scores to set so low a rate.
    """
    rank = _rank(len(scores), false_alarm_rate)
    return float(np.partition(np.asarray(scores, np.float64), rank - 1)[rank - 1])


def false_alarm_interval(
    n: int, false_alarm_rate: float, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The rate to expect of the threshold chosen on n scores, and the interval it lies in.

    (j / (n + 1), low, high): the central interval of Beta(j, n + 1 - j) that has probability
    `confidence`; scores without ties. Raises what `choose_threshold` raises.
    """
    rank = _rank(n, false_alarm_rate)
    tail = (1 - confidence) / 2
    low, high = beta.ppf([tail, 1 - tail], rank, n + 1 - rank)
    return rank / (n + 1), float(low), float(high)


def p_values(held_out: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The share of held-out normal images that score lower, for each of scores (n,): float64 (n,).

    0 means that all of them score as high or higher.
    """
    return np.searchsorted(np.sort(held_out), scores, side="left") / len(held_out)


def min_held_out(false_alarm_rate: float) -> int:
    """How many held-out images a threshold needs. Raises ValueError for a rate outside (0, 1)."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false alarm rate is {false_alarm_rate}, expected between 0 and 1")
    return max(1, math.ceil(1 / false_alarm_rate - 1e-9) - 1)


def _rank(n, false_alarm_rate):
    needed = min_held_out(false_alarm_rate)
    if n < needed:
        raise ValueError(
            f"a false alarm rate of {false_alarm_rate:g} needs at least {needed} held-out normal "
            f"images, got {n}: hold out more, or allow a higher rate"
        )
    return min(n, math.floor(false_alarm_rate * (n + 1) + 1e-9))
