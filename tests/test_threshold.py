import numpy as np
import pytest
from scipy.stats import binom

from utils.threshold import choose_threshold, false_alarm_interval, min_held_out, p_values


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
    for rate in (0, 1, -0.1, 5, np.nan):
        with pytest.raises(ValueError, match="expected between 0 and 1"):
            choose_threshold(np.arange(100), rate)


def test_p_values_count_lower_scores():
    rng = np.random.default_rng(0)
    held_out, scores = rng.integers(0, 20, 50).astype(float), rng.integers(-2, 23, 80).astype(float)
    expected = [np.mean([h < s for h in held_out]) for s in scores]
    np.testing.assert_array_equal(p_values(held_out, scores), expected)
