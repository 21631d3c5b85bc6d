import numpy as np
from sklearn.neighbors import KernelDensity

from utils.density import SHARPNESS, UnitDensity, unit


def features(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3, 5)) + np.array([[[4, 0, 0, 0, 0]], [[0, 1, 0, 0, 0]]])[n % 2]


def test_is_scikit_learns_kernel_density_of_unit_vectors():
    """But for a constant: its Gaussian has a norm."""
    reference, x = features(40, seed=0), features(11, seed=1)
    density = UnitDensity(reference)
    expected = np.zeros((3, 11))
    for j in range(3):
        vectors = unit(density.reference[:, j]).astype(np.float64)
        bandwidth = (2 * SHARPNESS / vectors.var(axis=0).sum()) ** -0.5
        fitted = KernelDensity(bandwidth=bandwidth, rtol=1e-9).fit(vectors)
        expected[j] = fitted.score_samples(unit(x[:, j]))
    found = density.score(x)
    np.testing.assert_allclose(np.diff(found), np.diff(expected.mean(0)), rtol=1e-3, atol=1e-3)
    one = density.score(x[:, [2]], rows=np.array([2]))
    np.testing.assert_allclose(np.diff(one), np.diff(expected[2]), rtol=1e-3, atol=1e-3)


def test_lengths_do_not_matter_and_zeros_are_finite():
    reference, x = features(20, seed=2), features(7, seed=3)
    density = UnitDensity(reference)
    np.testing.assert_allclose(density.score(5 * x), density.score(x), rtol=1e-5)
    assert np.isfinite(density.score(np.zeros((2, 3, 5)))).all()
    assert np.isfinite(UnitDensity(np.ones((4, 3, 5))).score(x)).all()  # no spread


def test_a_kept_reference_is_the_same_density():
    density, x = UnitDensity(features(20, seed=4)), features(7, seed=5)
    np.testing.assert_array_equal(UnitDensity(density.reference).score(x), density.score(x))
