import keras
import numpy as np
import pytest

import baselines.adgan as adgan
from baselines.adgan import ADGAN, Reconstruction, gradient_penalty
from benchmarks.adgan_scoring import OnePair, one_after_another
from models.encoders_decoders import convolutional_decoder
from utils.metrics import auroc

not_on_jax = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="ADGAN does not train on JAX"
)


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


@pytest.fixture(scope="module")
def generator():
    """Untrained, but with statistics and affine parts unlike those that it begins with."""
    generator = convolutional_decoder((16, 16, 1), 8, seed=0)
    rng = np.random.default_rng(0)
    for variable in generator.variables:
        if len(variable.shape) == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return generator


def test_penalty_of_a_linear_critic():
    critic = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    kernel = np.random.default_rng(0).normal(size=(16, 1))
    critic.set_weights([kernel, np.ones(1)])
    x = keras.ops.ones((3, 4, 4, 1))
    norm = np.linalg.norm(kernel)
    assert numpy(gradient_penalty(critic, x)) == pytest.approx((norm - 1) ** 2, rel=1e-5)
    critic.set_weights([kernel / norm / 2, np.ones(1)])  # under 1 is penalised too
    assert numpy(gradient_penalty(critic, x)) == pytest.approx(0.25, rel=1e-5)


def test_every_pair_has_its_own_generator(generator):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(3, 8)).astype("float32")
    weights = [
        np.stack([numpy(v) + 0.1 * rng.normal(size=v.shape) for _ in z]).astype("float32")
        for v in generator.trainable_variables
    ]
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, [weights, z])
    found = numpy(adgan.generate_each(generator, *inputs))
    own = keras.models.clone_model(generator)
    own.set_weights(generator.get_weights())
    for i in range(len(z)):
        for variable, values in zip(own.trainable_variables, weights, strict=True):
            variable.assign(values[i])
        expected = numpy(own(z[i : i + 1], training=False))[0]
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@not_on_jax
def test_many_pairs_at_once_score_as_one_after_another(generator):
    """Against Keras's own layers, gradients and Adam, where a step's effect is well visible."""
    rng = np.random.default_rng(2)
    settings = ADGAN(latent_dim=8, scoring_steps=3, weights_learning_rate=1e-3)
    x = rng.uniform(-1, 1, (3, 16, 16, 1)).astype("float32")
    z = rng.normal(size=(2, 8)).astype("float32")
    model = Reconstruction(generator, z, settings)
    model.compile(jit_compile=False)
    one = OnePair(generator, settings)
    one.compile(jit_compile=False)
    expected = one_after_another(one, x, z)
    np.testing.assert_allclose(model.predict_on_batch(x), expected, rtol=1e-4)
    np.testing.assert_allclose(model.predict_on_batch(x[:2]), expected[:2], rtol=1e-4)
    start = ADGAN(latent_dim=8, scoring_steps=0)
    without = Reconstruction(generator, z, start).predict_on_batch(x)
    assert (expected < 0.97 * without).all()


@not_on_jax
def test_tells_zeros_from_other_digits(digits):
    detector = ADGAN(
        latent_dim=32,
        epochs=1,
        steps_per_epoch=60,
        batch_size=24,
        learning_rate=2e-3,
        n_seeds=1,
        pairs_at_once=20,
        verbose=0,
    )
    detector.fit(digits.x_train[digits.y_train == 0])
    scores = detector.score_samples(digits.x_test[:60])
    assert auroc(digits.y_test[:60] == 0, scores) > 0.9


@not_on_jax
def test_critic_goes_two_steps_for_one_of_the_generator(digits):
    made = []

    class Recorded(adgan.WassersteinGAN):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    original = adgan.WassersteinGAN
    adgan.WassersteinGAN = Recorded
    try:
        ADGAN(epochs=1, steps_per_epoch=3, batch_size=4, verbose=0).fit(digits.x_train[:8])
    finally:
        adgan.WassersteinGAN = original
    critic, generator = made[0].trainers
    assert (int(critic.optimizer.iterations), int(generator.optimizer.iterations)) == (6, 3)
    for trainer, network in ((critic, critic.critic), (generator, generator.generator)):
        assert len(trainer.trainable_variables) == len(network.trainable_variables)


def test_jax_is_refused(monkeypatch, digits):
    monkeypatch.setattr(adgan, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="not on JAX: set KERAS_BACKEND=tensorflow or torch"):
        ADGAN().fit(digits.x_train[:4])
