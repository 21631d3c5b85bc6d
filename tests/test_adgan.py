import keras
import numpy as np
import pytest

import baselines.adgan as adgan
from baselines.adgan import ADGAN, Reconstruction, gradient_penalty
from benchmarks.adgan_scoring import OnePair, one_after_another
from models.encoders_decoders import convolutional_decoder


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


def linear_critic():
    return keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])


def linear_generator():
    layers = [keras.Input((8,)), keras.layers.Dense(16), keras.layers.Reshape((4, 4, 1))]
    return keras.Sequential(layers)


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
    critic = linear_critic()
    kernel = np.random.default_rng(0).normal(size=(16, 1))
    critic.set_weights([kernel, np.ones(1)])
    x = keras.ops.ones((3, 4, 4, 1))
    norm = np.linalg.norm(kernel)
    assert numpy(gradient_penalty(critic, x)) == pytest.approx((norm - 1) ** 2, rel=1e-5)
    critic.set_weights([kernel / norm / 2, np.ones(1)])  # under 1 is penalised too
    assert numpy(gradient_penalty(critic, x)) == pytest.approx(0.25, rel=1e-5)


def test_every_pair_has_its_own_generator(generator):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(3, 2, 8)).astype("float32")
    weights = [
        np.stack([numpy(v) + 0.1 * rng.normal(size=v.shape) for _ in z]).astype("float32")
        for v in adgan.adapted_weights(generator)
    ]
    weights, z = keras.tree.map_structure(keras.ops.convert_to_tensor, [weights, z])
    found = numpy(adgan.generate_each(generator, weights, z))
    in_training = numpy(adgan.generate_each(generator, weights))
    own = keras.models.clone_model(generator)
    for i in range(len(z)):
        own.set_weights(generator.get_weights())
        for variable, values in zip(adgan.adapted_weights(own), weights, strict=True):
            variable.assign(values[i])
        np.testing.assert_allclose(found[i], numpy(own(z[i], training=False)), atol=1e-5)
        # a batch of one image, whatever its z
        np.testing.assert_allclose(in_training[i], numpy(own(z[i, 1:], training=True)), atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no assignments in `call`")
def test_many_pairs_at_once_score_as_one_after_another(generator):
    """Against Keras's own layers, gradients and Adam, where a step's effect is well visible.

    There all weights are adapted, in training mode on a batch of one.
    """
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
    start = ADGAN(latent_dim=8, scoring_steps=0)
    without = Reconstruction(generator, z, start).predict_on_batch(x)
    assert (np.abs(expected / without - 1) > 0.005).all()


def halves(n, seed):
    """Noisy images, bright on the left: mirrored, they are anomalies."""
    x = np.random.default_rng(seed).integers(0, 60, (n, 16, 16, 1), dtype=np.uint8)
    x[:, :, :8] += 150
    return x


@pytest.fixture(scope="module")
def trained():
    """A detector and the two networks in training that it came from."""
    made = []

    class Recorded(adgan.WassersteinGAN):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    settings = {"latent_dim": 8, "batch_size": 8, "learning_rate": 5e-3, "scoring_steps": 2}
    detector = ADGAN(**settings, epochs=1, steps_per_epoch=30, n_seeds=1, verbose=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adgan, "WassersteinGAN", Recorded)
        detector.fit(halves(64, seed=100))
    return detector, made[0]


def test_tells_images_from_their_mirror_images(trained):
    x = halves(10, seed=1)
    scores = trained[0].score_samples(np.concatenate([x, x[:, :, ::-1]]))
    assert scores[:10].min() > scores[10:].max()


def test_critic_goes_two_steps_for_one_of_the_generator(trained):
    assert [int(each.iterations) for each in trained[1].optimizers] == [60, 30]


def test_the_first_step_of_both_networks_is_that_of_their_losses():
    """A linear critic w, a generator of one image c: Adam's first step is the gradient's sign."""
    rng = np.random.default_rng(4)
    critic = linear_critic()
    generator = linear_generator()
    w, c = rng.normal(size=(16, 1)), rng.uniform(-1, 1, 16)
    critic.set_weights([w, np.zeros(1)])
    generator.set_weights([np.zeros((8, 16)), c])
    x = rng.uniform(-1, 1, (6, 4, 4, 1)).astype("float32")
    rate = 1e-3
    gan = adgan.WassersteinGAN(critic, generator, ADGAN(latent_dim=8, learning_rate=rate))
    gan.critic_steps = 1
    logs = gan._steps(keras.ops.convert_to_tensor(x))

    mean, norm = x.reshape(6, 16).mean(0), np.linalg.norm(w)
    loss = (c - mean) @ w[:, 0] + 20 * (norm - 1) ** 2
    assert float(logs["critic"]) == pytest.approx(loss, rel=1e-4)
    slope = (c - mean)[:, None] + 20 * 2 * (norm - 1) * w / norm
    moved = numpy(critic.weights[0])
    np.testing.assert_allclose(moved - w, -rate * np.sign(slope), rtol=1e-2)
    np.testing.assert_allclose(numpy(generator.weights[1]) - c, rate * np.sign(w[:, 0]), rtol=1e-2)


def test_fakes_have_moving_statistics_which_move_with_the_generator_alone():
    """A generator whose moving statistics give one image, those of a batch several."""
    rng = np.random.default_rng(5)
    critic = linear_critic()
    normalisation = keras.layers.BatchNormalization()
    generator = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16),
            normalisation,
            keras.layers.Reshape((4, 4, 1)),
        ]
    )
    normalisation.moving_variance.assign(np.full(16, 1e12))
    beta, w = rng.uniform(-1, 1, 16), rng.normal(size=(16, 1))
    normalisation.beta.assign(beta)
    critic.set_weights([w, np.zeros(1)])
    gan = adgan.WassersteinGAN(critic, generator, ADGAN(latent_dim=8))
    x = rng.uniform(-1, 1, (6, 4, 4, 1)).astype("float32")
    before = generator.get_weights()
    critic_loss = gan._step(0, keras.ops.convert_to_tensor(x))
    loss = (beta - x.reshape(6, 16).mean(0)) @ w[:, 0] + 20 * (np.linalg.norm(w) - 1) ** 2
    assert float(critic_loss) == pytest.approx(loss, rel=1e-4)
    for one, other in zip(before, generator.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    gan._step(1, keras.ops.convert_to_tensor(x))
    assert (numpy(normalisation.moving_variance) < 1e12).all()
    assert (numpy(normalisation.moving_mean) != 0).all()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX traces what is noted here")
def test_the_penalty_is_between_real_and_generated_images(monkeypatch):
    """Real ones are 1, generated ones -1: an image lies at one share of the way, its own."""
    critic, seen = linear_critic(), []
    generator = linear_generator()
    generator.set_weights([np.zeros((8, 16)), -np.ones(16)])

    def noted(critic, x):
        seen.append(numpy(keras.ops.stop_gradient(x)))
        return gradient_penalty(critic, x)

    monkeypatch.setattr(adgan, "gradient_penalty", noted)
    gan = adgan.WassersteinGAN(critic, generator, ADGAN(latent_dim=8))
    assert [(float(each.beta_1), float(each.beta_2)) for each in gan.optimizers] == [(0, 0.9)] * 2
    gan._step(0, keras.ops.ones((50, 4, 4, 1)))
    x = seen[0].reshape(50, 16)
    assert np.ptp(x, axis=1).max() < 1e-6
    assert -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1 and len(set(x[:, 0])) == 50


def test_each_step_sees_its_part_of_the_batch(monkeypatch):
    generator = linear_generator()
    settings = ADGAN(latent_dim=8, batch_size=3, critic_steps=2)
    gan, seen = adgan.WassersteinGAN(linear_critic(), generator, settings), []
    monkeypatch.setattr(gan, "_step", lambda which, x: seen.append((which, x.tolist())))
    gan._steps(np.arange(6.0))
    assert seen == [(0, [0, 1, 2]), (0, [3, 4, 5]), (1, [3, 4, 5])]


def test_a_critic_step_sees_no_image_twice():
    detector = ADGAN(batch_size=4, critic_steps=3)
    detector._begin((8, 8, 1), "uint8")
    drawn = detector._draw(np.random.default_rng(0), 5).reshape(3, 4)
    assert all(len(set(part)) == 4 for part in drawn) and drawn.max() < 5
    assert len(detector._draw(np.random.default_rng(0), 2)) == 12  # of two images alone
