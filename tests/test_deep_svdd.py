import keras
import numpy as np
import pytest

from baselines import deep_svdd
from baselines.deep_svdd import (
    DeepSVDD,
    _Autoencoder,
    _Distance,
    contrast_limits,
    normalise_contrast,
    push_from_zero,
)
from utils.detector import to_unit_range
from utils.metrics import auroc
from utils.optimizers import step_schedule


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


def test_contrast_does_not_depend_on_brightness_or_range():
    x = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype("float32")
    normalised = numpy(normalise_contrast(x))
    np.testing.assert_allclose(normalised.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.abs(normalised).mean(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(numpy(normalise_contrast(0.3 * x + 0.1)), normalised, atol=1e-5)
    assert contrast_limits(x) == pytest.approx((normalised.min(), normalised.max()))


def test_components_near_0_are_pushed_away():
    centre = np.array([-3.0, -0.1, -0.05, 0.0, 0.02, 0.1, 2.0])
    np.testing.assert_array_equal(push_from_zero(centre), [-3, -0.1, -0.1, 0.1, 0.1, 0.1, 2])


class Recorded(DeepSVDD):
    """Keeps what each of the two trainings starts from."""

    def _fit_model(self, model, x, epochs, *how):
        code = numpy(model.encoder(to_unit_range(x), training=False))
        self.starts.append((epochs, model.encoder.get_weights(), code))
        self.losses.append([mean_loss(model, x)])
        super()._fit_model(model, x, epochs, *how)
        self.losses[-1].append(mean_loss(model, x))
        self.ends.append(model.encoder.get_weights())
        self.rates.append(numpy(model.optimizer.learning_rate))


def mean_loss(model, x):
    """With the statistics of these images, as in training, and without a trace of it."""
    statistics = [numpy(variable) for variable in model.non_trainable_variables]
    x = keras.ops.convert_to_tensor(to_unit_range(x))
    loss = numpy(model.loss_of(x, model(x, training=True)))
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    return loss


def test_tells_fours_from_noise_starting_from_the_autoencoder(digits):
    fours, x = digits.x_train[digits.y_train == 4], digits.x_test[digits.y_test == 4]
    fours, x = fours[:, ::2, ::2], x[:, ::2, ::2]
    noise = np.random.default_rng(1).integers(0, 256, x.shape).astype(np.uint8)
    x, normal = np.concatenate([x, noise]), np.arange(2 * len(x)) < len(x)
    detector = Recorded(epochs=6, batch_size=16, learning_rate=1e-3, verbose=0)
    detector.starts, detector.ends, detector.rates, detector.losses = [], [], [], []
    scores = detector.fit(fours).score_samples(x)
    assert auroc(normal, scores) > 0.9
    for before, after in detector.losses:
        assert after < 0.2 * before

    (pretraining, initial, _), (training, weights, code) = detector.starts
    assert (pretraining, training) == (pytest.approx(14), 6)
    for end, start in zip(detector.ends[0], weights, strict=True):
        np.testing.assert_array_equal(end, start)
    assert any((a != b).any() for a, b in zip(initial, weights, strict=True))
    np.testing.assert_allclose(detector.rates, 1e-4, rtol=1e-5)  # of the last epochs

    network = detector.network_
    centre = numpy(network.centre)
    np.testing.assert_allclose(centre, push_from_zero(code.mean(axis=0)), atol=1e-4)
    distance = np.sum((numpy(network.encoder(to_unit_range(x))) - centre) ** 2, axis=1)
    np.testing.assert_allclose(scores, -distance, rtol=1e-3, atol=1e-4)


def test_the_rate_falls_at_epochs_250_of_350_and_50_of_150(monkeypatch):
    asked = []

    def schedule(rate, steps, drops, factor):
        asked.append((rate, steps, *drops, factor))
        return step_schedule(rate, steps, drops, factor)

    monkeypatch.setattr(deep_svdd, "step_schedule", schedule)
    monkeypatch.setattr(DeepSVDD, "_train", lambda *_, **__: None)
    DeepSVDD(epochs=3, verbose=0).fit(np.zeros((10, 8, 8, 1), np.uint8))
    expected = [(1e-4, 7, 250 / 350, 0.1), (1e-4, 3, 50 / 150, 0.1)]
    assert asked == [pytest.approx(each) for each in expected]


def test_there_are_no_biases(digits):
    """Kernels are trained, and what the normalisation has of its own, which is not decayed."""
    detector = DeepSVDD()
    detector._begin((16, 16, 1), "uint8")
    encoder, decoder, _ = detector._lenet(digits.x_train[:4])
    for variable in encoder.trainable_variables + decoder.trainable_variables:
        assert variable.path.endswith(("kernel", "gamma", "beta"))
        assert (variable.regularizer is not None) == variable.path.endswith("kernel")
    shapes = [
        tuple(variable.shape)
        for variable in encoder.trainable_variables
        if variable.path.endswith("kernel")
    ]
    assert shapes == [(5, 5, 1, 32), (5, 5, 32, 64), (5, 5, 64, 128), (512, 128)]


def test_losses_and_initial_weights_are_those_of_the_authors_release(digits):
    """Sums over pixels and codes, half the decay; Glorot's bounds, of convolutions by sqrt 2."""
    detector = DeepSVDD(weight_decay=0.1)
    detector._begin((16, 16, 1), "uint8")
    x = to_unit_range(digits.x_train[:6])
    encoder, decoder, normalise = detector._lenet(digits.x_train[:6])
    decay = 0.0
    for variable in encoder.trainable_variables + decoder.trainable_variables:
        if variable.path.endswith("kernel"):
            *field, inputs, outputs = variable.shape
            bound = np.sqrt(6 / (np.prod(field) * (inputs + outputs)) * (2 if field else 1))
            assert 0.99 * bound < np.abs(numpy(variable)).max() <= bound * (1 + 1e-6)
            decay += 0.05 * np.sum(numpy(variable) ** 2)
    autoencoder = _Autoencoder(encoder, decoder, normalise)
    loss = float(autoencoder.compute_loss(x, y_pred=autoencoder(x, training=False)))
    normalised = x - x.mean(axis=(1, 2, 3), keepdims=True)
    normalised /= np.abs(normalised).mean(axis=(1, 2, 3), keepdims=True)
    normalised = (normalised - normalised.min()) / (normalised.max() - normalised.min())
    error = np.sum((normalised - numpy(decoder(encoder(x)))) ** 2) / 6
    assert loss == pytest.approx(error + decay, rel=1e-4)

    network = _Distance(encoder, np.full(128, 0.3, np.float32))
    loss = float(network.compute_loss(y_pred=network(x, training=False)))
    kernels = [v for v in encoder.trainable_variables if v.path.endswith("kernel")]
    decay = 0.05 * sum(np.sum(numpy(kernel) ** 2) for kernel in kernels)
    distance = np.sum((numpy(encoder(x)) - 0.3) ** 2) / 6
    assert loss == pytest.approx(distance + decay, rel=1e-4)


def test_a_fifth_of_the_images_is_held_out(monkeypatch):
    seen = []
    monkeypatch.setattr(DeepSVDD, "_fit_model", lambda self, model, x, *how: seen.append(x))
    x = np.arange(100, dtype=np.uint8).repeat(64).reshape(100, 8, 8, 1)
    for settings in ({}, {}, {"seed": 1}, {"held_out": 0}):
        DeepSVDD(**settings, pretraining_epochs=0, verbose=0).fit(x)
    chosen = [set(part[:, 0, 0, 0]) for part in seen]
    assert [len(each) for each in chosen] == [80, 80, 80, 100]
    assert chosen[0] == chosen[1] != chosen[2]


def test_images_of_odd_sides_are_refused():
    with pytest.raises(ValueError, match="images of 20x20 and a code of 128"):
        DeepSVDD().fit(np.zeros((2, 20, 20, 1), np.uint8))
