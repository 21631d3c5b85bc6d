import numpy as np
import pytest
from scipy.stats import binom

from utils.threshold import (
    anomaly_scores,
    choose_threshold,
    false_alarm_interval,
    min_held_out,
    p_values,
)


@pytest.mark.parametrize("n, rate", [(19, 0.05), (20, 0.05), (99, 0.01), (300, 0.1), (7, 0.5)])
def test_the_rate_is_what_further_normal_images_show(n, rate):
    """4,000 draws of n held-out and 200 further scores, of a skewed distribution."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(4_000):
        threshold = choose_threshold(rng.lognormal(size=n), rate)
        rates.append((rng.lognormal(size=200) < threshold).mean())
    expected, low, high = false_alarm_interval(n, rate)
    assert expected <= rate + 1e-12
    assert expected > rate - 1 / (n + 1)
    error = 4 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(expected, abs=error)
    assert low < expected < high


@pytest.mark.parametrize("n, rate", [(19, 0.05), (300, 0.05), (300, 0.1)])
def test_the_interval_inverts_the_binomial(n, rate):
    """The true rate exceeds q where under j of n uniform scores lie under q."""
    expected, low, high = false_alarm_interval(n, rate)
    j = round(expected * (n + 1))
    assert binom.cdf(j - 1, n, high) == pytest.approx(0.025)
    assert binom.cdf(j - 1, n, low) == pytest.approx(0.975)


def test_as_few_images_as_a_rate_needs():
    for rate in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9):
        n = min_held_out(rate)
        assert (n + 1) * rate >= 1 - 1e-9 and (n == 1 or n * rate < 1)
        assert choose_threshold(np.arange(n), rate) >= 0
    with pytest.raises(ValueError, match="at least 19 held-out normal images, got 18"):
        choose_threshold(np.arange(18), 0.05)
    with pytest.raises(ValueError, match="takes more images than there are"):
        min_held_out(1e-320)
    for rate in (0, 1, -0.1, 5, np.nan):
        with pytest.raises(ValueError, match="expected between 0 and 1"):
            choose_threshold(np.arange(100), rate)


def test_p_values_count_scores_as_low():
    rng = np.random.default_rng(0)
    held_out, scores = rng.integers(0, 20, 50).astype(float), rng.integers(-2, 23, 80).astype(float)
    expected = [(1 + sum(h <= s for h in held_out)) / 51 for s in scores]
    np.testing.assert_array_equal(p_values(held_out, scores), expected)
    assert p_values(held_out, np.array([-1e300])) == 1 / 51


@pytest.mark.parametrize("n", [1, 9, 19, 20, 49, 300])
def test_flags_and_p_values_agree(n):
    """Whatever the ties, and where a rate is just a possible p-value, or a rounding beside it."""
    rng = np.random.default_rng(n)
    exact = np.arange(1, n + 1) / (n + 1)
    rates = np.concatenate([exact, np.nextafter(exact, 1), rng.uniform(1 / (n + 1), 1, 50)])
    for rate in rates:
        held_out = rng.integers(0, 2 * n, n).astype(float)
        scores = np.concatenate([held_out, rng.uniform(-1, 2 * n, 50)])
        flagged = scores < choose_threshold(held_out, rate)
        np.testing.assert_array_equal(flagged, p_values(held_out, scores) <= rate)
    for rate in np.nextafter(exact[:1], 0):
        with pytest.raises(ValueError, match="held-out normal images"):
            choose_threshold(np.arange(n), rate)


def test_p_values_are_valid():
    """Of normal images, at most a share q has a p-value of at most q, whatever q."""
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [p_values(rng.lognormal(size=24), rng.lognormal(size=5)) for _ in range(4_000)]
    )
    for q in (0.04, 0.05, 0.2, 0.5, 0.9):
        assert (p <= q).mean() <= q + 4 * np.sqrt(q / len(p) * 5)


def test_anomaly_scores_are_standard_deviations_and_robust():
    rng = np.random.default_rng(0)
    held_out = rng.normal(100, 7, 20_000)
    np.testing.assert_allclose(anomaly_scores(held_out, [100, 93, 65]), [0, 1, 5], atol=0.1)
    held_out[:20] = -1e14
    np.testing.assert_allclose(anomaly_scores(held_out, [100, 93, 65]), [0, 1, 5], atol=0.1)
    assert np.isfinite(anomaly_scores(np.full(20, 3.0), [1.0, 3.0])).all()
