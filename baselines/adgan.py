"""Anomaly detection with a generative adversarial network (section 5.1; Deecke et al., 2018)."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from baselines.deep import DeepBaseline
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from utils.backend import backend, input_gradient
from utils.device import use_xla
from utils.optimizers import Adam
from utils.settings import number, optional, setting, whole_number


@dataclass(eq=False, repr=False, kw_only=True)
class ADGAN(DeepBaseline):
    """How well a generator of normal images, given some steps to adapt, makes an image.

    Training: a Wasserstein GAN. The critic is the shared encoder with one linear output, the
    generator the shared decoder from N(0, I) of latent_dim. The critic's gradients between real and
    generated images are held at norm 1 by a penalty with coefficient gradient_penalty. Each of
    `epochs` has steps_per_epoch generator steps, with critic_steps each; Adam with learning_rate,
    beta 0 and 0.9.

    Scoring: for each of n_seeds latent vectors z, scoring_steps Adam steps (beta_1 0.5) on z with
    z_learning_rate, in turn with steps on a copy of the generator's weights with
    weights_learning_rate; every image and z starts from the trained weights. The score is minus the
    mean over the z of the mean squared error that is left. All images have the same first z, so
    that the score of an image depends on nothing else. max_test: experiments score a random so many
    of the test images.

    pairs_at_once pairs of image and z are adapted at once, or one image's where it has more; they
    take about 20 MB each at 32x32, measured on TensorFlow. TensorFlow and PyTorch only.
    """

    latent_dim: int = setting(256, whole_number())
    gradient_penalty: float = setting(20.0, number(low_too=True))
    critic_steps: int = setting(2, whole_number())
    steps_per_epoch: int = setting(100, whole_number())
    n_seeds: int = setting(8, whole_number())
    scoring_steps: int = setting(5, whole_number(0))
    z_learning_rate: float = setting(0.25, number(low_too=True))
    weights_learning_rate: float = setting(5e-5, number(low_too=True))
    pairs_at_once: int = setting(64, whole_number())
    max_test: int | None = setting(5000, optional(whole_number()))
    epochs: float = setting(100, number())
    learning_rate: float = setting(1e-4, number())

    def _train(self, x: np.ndarray) -> keras.Model:
        if backend() == "jax":
            raise ValueError(
                "ADGAN trains on TensorFlow and PyTorch, not on JAX: set KERAS_BACKEND=tensorflow "
                "or torch"
            )
        settings = self.settings_
        critic = convolutional_encoder(x.shape[1:], 1, None, seed=settings.seed)
        generator = convolutional_decoder(x.shape[1:], settings.latent_dim, seed=settings.seed + 1)
        gan = WassersteinGAN(critic, generator, settings)
        rng = np.random.default_rng(settings.seed)
        steps = max(1, round(settings.epochs * settings.steps_per_epoch))
        batches = rng.integers(len(x), size=(steps, settings.critic_steps * settings.batch_size))
        self._fit_network(gan, x, batches, "ADGAN")
        z = rng.standard_normal((settings.n_seeds, settings.latent_dim)).astype(np.float32)
        network = Reconstruction(generator, z, settings)
        # products of matrices, no convolutions: here XLA is three times as fast on a CPU too
        network.compile(jit_compile=backend() == "tensorflow")
        return network

    def _score(self, x: np.ndarray) -> np.ndarray:
        images = max(1, self.settings_.pairs_at_once // self.settings_.n_seeds)
        return -self._predict(self.network_, x, images, "ADGAN, scoring")


# --------------------------------------------------------------------------------------- training


class WassersteinGAN(keras.Model):
    """Trains the critic on each part of a batch of real images, then the generator once."""

    def __init__(self, critic, generator, settings):
        super().__init__(name="wasserstein_gan")
        self.batch_size, self.critic_steps = settings.batch_size, settings.critic_steps
        noise = _Noise(settings.latent_dim, settings.seed)
        self.trainers = [
            _CriticTrainer(critic, generator, noise, settings),
            _GeneratorTrainer(critic, generator, noise),
        ]
        for trainer, network in zip(self.trainers, (critic, generator), strict=True):
            adam = Adam(settings.learning_rate, beta_1=0.0, beta_2=0.9)
            adam.build(network.trainable_variables)
            trainer.compile(adam)
        self.compile(optimizer=None, jit_compile=use_xla())
        self.built = True

    def call(self, x):
        return x

    def train_step(self, data):
        (x,) = data
        critic, generator = self.trainers
        for step in range(self.critic_steps):
            part = x[step * self.batch_size : (step + 1) * self.batch_size]
            critic_logs = critic.train_step((part,))
        generator_logs = generator.train_step((part,))
        return {"critic": critic_logs["loss"], "generator": generator_logs["loss"]}


class _Noise(layers.Layer):
    """A latent vector for each image of a batch."""

    def __init__(self, latent_dim, seed):
        super().__init__(name="noise")
        self.latent_dim, self.seeds = latent_dim, keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, x):
        return keras.random.normal((ops.shape(x)[0], self.latent_dim), seed=self.seeds)


class _CriticTrainer(keras.Model):
    def __init__(self, critic, generator, noise, settings):
        super().__init__(name="critic_trainer")
        self.critic = critic
        self.generate = lambda x: generator(noise(x), training=True)  # not this model's to train
        self.penalty = settings.gradient_penalty
        self.seeds = keras.random.SeedGenerator(settings.seed + 1)
        self.built = True

    def call(self, x, training=False):
        return self.critic(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        fake = ops.stop_gradient(self.generate(x))
        share = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.seeds)
        penalty = gradient_penalty(self.critic, share * x + (1 - share) * fake)
        return (
            ops.mean(self.critic(fake, training=True)) - ops.mean(y_pred) + self.penalty * penalty
        )


class _GeneratorTrainer(keras.Model):
    def __init__(self, critic, generator, noise):
        super().__init__(name="generator_trainer")
        self.generator, self.noise = generator, noise
        self.criticise = lambda x: critic(x, training=True)  # not this model's to train
        self.built = True

    def call(self, x, training=False):
        return self.generator(self.noise(x), training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return -ops.mean(self.criticise(y_pred))


def gradient_penalty(critic: keras.Model, x):
    """The mean of (||gradient of critic at x|| - 1)^2: both sides of 1 are penalised."""
    gradient = input_gradient(critic, x, training=True)
    norm = ops.sqrt(ops.sum(gradient**2, axis=(1, 2, 3)) + 1e-12)
    return ops.mean((norm - 1) ** 2)


# ---------------------------------------------------------------------------------------- scoring


class Reconstruction(keras.Model):
    """Images (n, h, w, c) to the mean errors (n,) of the generators adapted to them."""

    def __init__(self, generator, z, settings):
        super().__init__(name="reconstruction")
        self.generator, self.z = generator, z
        self.steps = settings.scoring_steps
        self.rates = settings.z_learning_rate, settings.weights_learning_rate
        self.built = True

    def call(self, x):
        pairs = ops.shape(x)[0] * len(self.z)
        z = ops.tile(self.z, (ops.shape(x)[0], 1))
        x = ops.repeat(x, len(self.z), axis=0)
        weights = [
            ops.broadcast_to(variable[None], (pairs, *variable.shape))
            for variable in self.generator.trainable_variables
        ]

        def error(z, weights):
            images = generate_each(self.generator, weights, z)
            return ops.mean((images - x) ** 2, axis=(1, 2, 3))

        def step(t, state):
            z_state, weight_states = state
            weights = [value for value, _, _ in weight_states]
            slope = input_gradient(error, z_state[0], weights=weights)
            z_state = adam_step(t, z_state, slope, self.rates[0])
            slopes = input_gradient(lambda weights, z: error(z, weights), weights, z=z_state[0])
            weight_states = [
                adam_step(t, each, slope, self.rates[1])
                for each, slope in zip(weight_states, slopes, strict=True)
            ]
            return z_state, weight_states

        def start(value):
            return value, ops.zeros_like(value), ops.zeros_like(value)

        state = start(z), [start(value) for value in weights]
        (z, _, _), weight_states = ops.fori_loop(0, self.steps, step, state)
        errors = error(z, [value for value, _, _ in weight_states])
        return ops.mean(ops.reshape(errors, (-1, len(self.z))), axis=1)


def adam_step(t, state: tuple, gradient, learning_rate, beta_1=0.5, beta_2=0.999):
    """Step t = 0, 1, ... of keras.optimizers.Adam on state: a value and its two moments."""
    value, m, v = state
    t = ops.cast(t, "float32") + 1
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    rate = learning_rate * ops.sqrt(1 - beta_2**t) / (1 - beta_1**t)
    return value - rate * m / (ops.sqrt(v) + 1e-7), m, v


def generate_each(generator: keras.Model, weights: list, z):
    """Image i from z[i] by the generator with weights[:][i], its own: (n, h, w, c).

    weights: for each of the generator's trainable variables, its values with a leading axis of n.
    Batch normalisation has the statistics of training.
    """
    weights = iter(weights)
    x = z
    for layer in generator.layers[1:]:
        if isinstance(layer, layers.Dense):
            x = ops.einsum("ni,nio->no", x, next(weights)) + next(weights)
        elif isinstance(layer, layers.Conv2DTranspose):
            x = conv_transpose_each(x, next(weights)) + next(weights)[:, None, None]
        elif isinstance(layer, layers.BatchNormalization):
            scale = next(weights) / ops.sqrt(layer.moving_variance + layer.epsilon)
            offset = next(weights) - layer.moving_mean * scale
            shape = (-1, *[1] * (len(x.shape) - 2), x.shape[-1])
            x = x * ops.reshape(scale, shape) + ops.reshape(offset, shape)
        else:
            x = layer(x)
    return x


def conv_transpose_each(x, kernels):
    """Conv2DTranspose of stride 2, padding "same", with a 3x3 kernel for each of n images.

    x: (n, h, w, i). kernels: (n, 3, 3, o, i). Output pixel 2 r gets kernel row 0 of pixel r and row
    2 of r - 1, output pixel 2 r + 1 gets row 1 of r; and so for columns.
    """
    _, height, width, _ = x.shape
    filters = kernels.shape[3]
    x = ops.einsum("nhwi,nkloi->nhwklo", x, kernels)
    x = ops.stack([x[:, :, :, 0] + _after(x[:, :, :, 2], axis=1), x[:, :, :, 1]], axis=2)
    x = ops.reshape(x, (-1, 2 * height, width, 3, filters))
    x = ops.stack([x[:, :, :, 0] + _after(x[:, :, :, 2], axis=2), x[:, :, :, 1]], axis=3)
    return ops.reshape(x, (-1, 2 * height, 2 * width, filters))


def _after(x, axis):
    """x moved by one along axis, from a 0."""
    x = ops.pad(x, [(int(i == axis), 0) for i in range(len(x.shape))])
    return x[:, :-1] if axis == 1 else x[:, :, :-1]
