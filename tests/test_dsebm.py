import keras
import numpy as np
import pytest

from baselines.dsebm import DSEBM, Denoiser, EnergyModel
from utils.backend import input_gradient
from utils.detector import to_unit_range


@pytest.fixture(scope="module")
def energy():
    rng = np.random.default_rng(0)
    energy = EnergyModel((8, 8, 1), 16, seed=0)
    energy.b.assign(rng.uniform(-1, 1, (8, 8, 1)))
    return energy


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 1)).astype("float32")


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


def test_energy_is_half_the_distance_from_b_minus_the_code(energy, x):
    expected = 0.5 * np.sum((x - numpy(energy.b)) ** 2, axis=(1, 2, 3)) - numpy(
        energy.encoder(x)
    ).sum(axis=1)
    np.testing.assert_allclose(numpy(energy(x)), expected, rtol=1e-5)


def test_gradient_of_an_encoder_of_one_layer(x):
    """It is x - b - W 1[x W > 0]."""
    energy = EnergyModel((8, 8, 1), 16, seed=0)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(16, "relu")]
    energy.encoder = keras.Sequential(layers)
    rng = np.random.default_rng(2)
    w, b = rng.normal(size=(64, 16)), rng.uniform(-1, 1, (8, 8, 1))
    energy.encoder.set_weights([w, np.zeros(16)])
    energy.b.assign(b)
    gradient = numpy(input_gradient(energy, keras.ops.convert_to_tensor(x), training=True))
    active = (x.reshape(3, 64) @ w > 0).astype(float)
    np.testing.assert_allclose(gradient, x - b - (active @ w.T).reshape(x.shape), atol=1e-4)
    denoiser = Denoiser(energy, 0.5, seed=0)
    np.testing.assert_allclose(numpy(denoiser(x, training=False)), x - gradient, atol=1e-5)
    noisy = numpy(denoiser.noise(x, training=True)) - x
    assert 0.4 < noisy.std() < 0.6
    denoiser.noise = lambda x, training: x + 0.25 * training
    active = ((x + 0.25).reshape(3, 64) @ w > 0).astype(float)
    gradient = x + 0.25 - b - (active @ w.T).reshape(x.shape)
    found = numpy(denoiser(x, training=True))
    np.testing.assert_allclose(found, x + 0.25 - gradient, atol=1e-4)


def test_the_noise_is_the_one_chosen(monkeypatch):
    seen = []
    monkeypatch.setattr(DSEBM, "_train", lambda self, model, *_: seen.append(model))
    DSEBM(noise=0.7, representation_dim=4, verbose=0).fit(np.zeros((2, 8, 8, 1), np.uint8))
    assert seen[0].noise.stddev == 0.7


def test_gradient_of_a_list_is_a_list():
    a, b = (keras.ops.convert_to_tensor(np.float32(v)) for v in ([1.0, 2.0], [3.0, 4.0]))
    by_a, by_b = input_gradient(lambda pair, scale: scale * pair[0] * pair[1] ** 2, [a, b], scale=2)
    np.testing.assert_allclose(numpy(by_a), [18, 32])
    np.testing.assert_allclose(numpy(by_b), [12, 32])


def test_tells_images_from_their_mirror_images():
    """Noisy images, bright on the left."""
    x = np.random.default_rng(0).integers(0, 60, (84, 8, 8, 1), dtype=np.uint8)
    x[:, :, :4] += 150
    x, normal = x[:64], x[64:]
    settings = {"representation_dim": 16, "batch_size": 32, "learning_rate": 2e-2}
    detector = DSEBM(**settings, epochs=10, verbose=0).fit(x)
    scores = detector.score_samples(np.concatenate([normal, normal[:, :, ::-1]]))
    assert scores[:20].min() > scores[20:].max()
    assert set(detector.seconds_) == {"training", "scoring"}
    # denoising draws b to the mean image
    mean = to_unit_range(x).mean(axis=0)
    assert np.corrcoef(numpy(detector.network_.b).ravel(), mean.ravel())[0, 1] > 0.9
