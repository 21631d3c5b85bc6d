import keras
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.metrics.pairwise import cosine_similarity

from baselines import deep
from baselines.dagmm import (
    DAGMM,
    _Mixture,
    energy,
    gaussian_mixture,
    reconstruction_features,
)
from utils.backend import input_gradient


def tensors(*arrays):
    return [keras.ops.convert_to_tensor(array.astype("float32")) for array in arrays]


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 1
    return z.astype("float32"), rng.dirichlet(np.ones(3), 60)


def test_mixture_is_the_weighted_mean_and_covariance(points):
    z, membership = points
    phi, mu, covariance = map(numpy, gaussian_mixture(*tensors(z, membership), 0.5))
    for k in range(3):
        weight = membership[:, k]
        np.testing.assert_allclose(phi[k], weight.mean(), rtol=1e-5)
        np.testing.assert_allclose(mu[k], np.average(z, axis=0, weights=weight), atol=1e-5)
        expected = np.cov(z, rowvar=False, aweights=weight, ddof=0) + 0.5 * np.eye(4)
        np.testing.assert_allclose(covariance[k], expected, rtol=1e-4, atol=1e-4)


def test_energy_is_minus_the_log_likelihood(points):
    z, membership = points
    mixture = phi, mu, covariance = gaussian_mixture(*tensors(z, membership), 1e-3)
    z = np.concatenate([z, 50 * z])  # far out, where the likelihood itself is 0 in float32
    found = energy(*tensors(z), phi, mu, keras.ops.cholesky(covariance))
    phi, mu, covariance = map(numpy, mixture)
    densities = [multivariate_normal(mu[k], covariance[k]).logpdf(z) for k in range(3)]
    expected = -logsumexp(np.log(phi)[:, None] + densities, axis=0)
    assert np.exp(-expected).min() < 1e-45
    np.testing.assert_allclose(numpy(found), expected, rtol=2e-4)


def test_floored_energies_are_those_of_the_authors_linear_space(points):
    """Near, far and narrow: phi exp(...) / sqrt(det(2 pi S) + 1e-7) + 1e-7 of each component."""
    z, membership = points
    phi, mu, covariance = map(numpy, gaussian_mixture(*tensors(z, membership), 1e-3))
    for scale in (1.0, 1e-4):
        points_of = np.concatenate([scale * z, 1e3 * z, mu])
        narrow = scale**2 * covariance
        density = 0.0
        for k in range(3):
            centred = points_of - mu[k]
            mahalanobis = np.sum(centred @ np.linalg.inv(narrow[k]) * centred, axis=1)
            root = np.sqrt(np.linalg.det(2 * np.pi * narrow[k]) + 1e-7)
            density = density + phi[k] * np.exp(-0.5 * mahalanobis) / root + 1e-7
        cholesky = np.linalg.cholesky(narrow)
        found = numpy(energy(*tensors(points_of, phi, mu, cholesky), 1e-7))
        np.testing.assert_allclose(found, -np.log(density), rtol=1e-3, atol=1e-3)
        assert found.max() == pytest.approx(-np.log(3e-7), abs=1e-4)
        assert found.min() > -np.log(1e7**0.5 + 3e-7) - 1e-3


def test_every_diagonal_may_grow_by_its_own(points):
    z, membership = tensors(*points)
    grown = np.random.default_rng(1).uniform(0.5, 1, (3, 4))
    _, _, found = gaussian_mixture(z, membership, *tensors(grown))
    _, _, plain = gaussian_mixture(z, membership, 0.0)
    expected = numpy(plain) + np.eye(4) * grown[:, :, None]
    np.testing.assert_allclose(numpy(found), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_the_method():
    """Against a rewrite from the network's parts, for both densities."""
    x = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 1)).astype("float32")
    for density, floor in (("floored", 1e-7), ("exact", 0.0)):
        detector = DAGMM(density=density)
        detector._begin((8, 8, 1), "float32")
        model = _Mixture((8, 8, 1), detector.settings_, "float32")
        energies = model(x, training=True)
        loss = float(model.compute_loss(y_pred=energies))
        phi, mu, cholesky = model.mixture
        decoded = model.decoder(model.encoder(x, training=True), training=True)
        covariance = numpy(cholesky) @ numpy(cholesky).transpose(0, 2, 1)
        inverse = np.sum(1 / np.diagonal(covariance, axis1=1, axis2=2))
        error = np.mean((x - numpy(decoded)) ** 2)
        expected = error + 0.01 * numpy(energies).mean() + 5e-4 * inverse
        assert loss == pytest.approx(expected, rel=1e-3)
        code = model.encoder(x, training=True)
        z = np.concatenate([code, reconstruction_features(x, decoded)], axis=1)
        again = energy(*tensors(z), phi, mu, cholesky, floor)
        np.testing.assert_allclose(numpy(energies), numpy(again), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("density", ["floored", "exact"])
def test_the_density_is_the_one_chosen(density):
    """Far from all components, and in training on one point, where they are narrow."""
    x = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 1)).astype("float32")
    detector = DAGMM(density=density, covariance_epsilon=1e-6)
    detector._begin((8, 8, 1), "float32")
    model = _Mixture((8, 8, 1), detector.settings_, "float32")
    narrow = numpy(model(np.repeat(x[:1], 12, axis=0), training=True))
    phi, mu, cholesky = model.mixture
    phi.assign(np.full(3, 1 / 3))
    mu.assign(np.full(mu.shape, 100.0))
    cholesky.assign(np.tile(np.eye(mu.shape[1]), (3, 1, 1)))
    far = numpy(model(x))
    if density == "floored":
        np.testing.assert_allclose(far, -np.log(3e-7), rtol=1e-5)
        assert narrow.min() > -8.2
    else:
        assert far.min() > 1e3 and narrow.max() < -20


@pytest.mark.parametrize("floor", [0.0, 1e-7])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_degenerate_points_have_finite_energies(scale, floor):
    """All on a line, one component without a member."""
    z = scale * np.outer(np.linspace(-1, 1, 30), [1, 2, 3, 4])
    z, membership = tensors(z, np.tile([0.5, 0.5, 0], (30, 1)))
    phi, mu, covariance = gaussian_mixture(z, membership, 1e-3)
    found = energy(z, phi, mu, keras.ops.cholesky(covariance), floor)
    assert np.isfinite(numpy(found)).all()


def test_features_are_relative_distance_and_cosine():
    rng = np.random.default_rng(0)
    x, r = rng.uniform(-1, 1, (2, 5, 8, 8, 3)).astype("float32")
    flat_x, flat_r = x.reshape(5, -1), r.reshape(5, -1)
    distance = np.linalg.norm(flat_x - flat_r, axis=1) / np.linalg.norm(flat_x, axis=1)
    expected = np.stack([distance, np.diag(cosine_similarity(flat_x, flat_r))], axis=1)
    np.testing.assert_allclose(numpy(reconstruction_features(x, r)), expected, rtol=1e-4)


def test_features_of_zeros_and_of_the_image_itself_have_finite_slopes():
    x = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))]).astype("float32")
    slope = input_gradient(lambda r: reconstruction_features(x, r), keras.ops.convert_to_tensor(x))
    assert np.isfinite(numpy(reconstruction_features(x, x))).all()
    assert np.isfinite(numpy(slope)).all()


def test_energies_that_are_not_finite_rank_last(monkeypatch):
    energies = np.float32([3, np.inf, np.finfo("float32").max, -np.inf, np.nan, -2])
    monkeypatch.setattr(deep, "predict", lambda *_: energies)
    detector = DAGMM()
    detector.network_ = None
    scores = detector._scores(energies)["own"]
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(np.argsort(-scores, kind="stable"), [5, 0, 2, 1, 3, 4])


def test_tells_images_from_their_mirror_images():
    """Noisy images, bright on the left."""
    x = np.random.default_rng(0).integers(0, 60, (84, 8, 8, 1), dtype=np.uint8)
    x[:, :, :4] += 150
    x, normal = x[:64], x[64:]
    settings = {"epochs": 60, "batch_size": 16, "covariance_epsilon": 0.1}
    detector = DAGMM(**settings, verbose=0).fit(x)
    scores = detector.score_samples(np.concatenate([normal, normal[:, :, ::-1]]))
    assert scores[:20].min() > scores[20:].max()
    phi, _, cholesky = map(numpy, detector.network_.mixture)
    np.testing.assert_allclose(phi.sum(), 1, rtol=1e-5)
    assert (np.diagonal(cholesky, axis1=1, axis2=2) > 0).all()
