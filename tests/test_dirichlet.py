import numpy as np
import pytest
from scipy import optimize, special, stats

from utils.dirichlet import estimate_alpha, initial_alpha, inverse_digamma, normality_score


@pytest.mark.parametrize("case", ["a", "b"])
def test_golden_values(golden, case):
    p = golden[f"p_{case}"]
    means = p.mean(0), np.log(p).mean(0)
    np.testing.assert_allclose(initial_alpha(*means), golden[f"alpha_init_{case}"], rtol=1e-9)
    np.testing.assert_allclose(estimate_alpha(*means), golden[f"alpha_{case}"], rtol=1e-6)
    score = normality_score(golden[f"alpha_{case}"], np.log(golden[f"q_{case}"]))
    np.testing.assert_allclose(score, golden[f"score_{case}"], rtol=1e-9)


def test_maximises_the_likelihood_as_scipy_does():
    p = stats.dirichlet([0.5, 2.0, 3.5, 1.0]).rvs(200, random_state=0)
    mean_log_p = np.log(p).mean(0)

    def negative_log_likelihood(log_alpha):
        alpha = np.exp(log_alpha)
        density = special.gammaln(alpha.sum()) - special.gammaln(alpha).sum()
        return -(density + ((alpha - 1) * mean_log_p).sum())

    best = optimize.minimize(negative_log_likelihood, np.zeros(4), tol=1e-12)
    np.testing.assert_allclose(estimate_alpha(p.mean(0), mean_log_p), np.exp(best.x), rtol=1e-4)


def test_many_problems_at_once_equal_one_at_a_time():
    p = stats.dirichlet(np.linspace(0.2, 3, 6)).rvs(40 * 9, random_state=1).reshape(3, 3, 40, 6)
    together = estimate_alpha(p.mean(2), np.log(p).mean(2))
    for i in range(3):
        for j in range(3):
            alone = estimate_alpha(p[i, j].mean(0), np.log(p[i, j]).mean(0))
            np.testing.assert_allclose(together[i, j], alone, rtol=1e-12)


def test_inverse_digamma():
    x = np.logspace(-6, 6, 200)
    np.testing.assert_allclose(inverse_digamma(special.digamma(x)), x, rtol=1e-9)


def log_softmax(logits):
    return logits - special.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "logits",
    [
        np.eye(5)[[0, 1, 2, 3, 4, 0]] * 1e3,  # saturated
        np.eye(5)[[2] * 6] * 1e4,  # saturated and constant: probabilities of exactly 0 and 1
        np.zeros((6, 5)),  # constant and uniform
        np.tile(np.arange(5.0), (6, 1)),  # constant
        np.eye(5)[[0, 1, 2, 3, 4, 0]] * 1e30,  # beyond anything a network gives
        np.random.default_rng(0).normal(0, 1e-9, (6, 5)),  # spread below rounding
    ],
)
def test_finite_for_any_softmax(logits):
    log_p = log_softmax(logits)
    alpha = estimate_alpha(np.exp(log_p).mean(0), log_p.mean(0))
    assert np.isfinite(alpha).all() and (alpha > 0).all()
    assert np.isfinite(normality_score(alpha, log_p)).all()


def test_score_sums_over_the_transformations():
    rng = np.random.default_rng(2)
    alpha, log_p = rng.random((3, 3)) * 5, np.log(rng.dirichlet(np.ones(3), (4, 3)))
    expected = [
        sum((alpha[i, j] - 1) * log_p[n, i, j] for i in range(3) for j in range(3))
        for n in range(4)
    ]
    np.testing.assert_allclose(normality_score(alpha, log_p), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "mean_p, mean_log_p, message",
    [
        ([0.5, 0.5], [-1.0, -np.inf], "finite"),
        ([0.5, 0.5], [-1.0], "one shape"),
        ([0.9, 0.9], [-1.0, -1.0], "sum to 1"),
        ([1.0], [0.0], "k >= 2"),
    ],
)
def test_bad_means_are_refused(mean_p, mean_log_p, message):
    with pytest.raises(ValueError, match=message):
        estimate_alpha(np.array(mean_p), np.array(mean_log_p))


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        normality_score(np.ones((3, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="finite"):
        normality_score(np.ones(2), np.array([[0.0, -np.inf]]))
