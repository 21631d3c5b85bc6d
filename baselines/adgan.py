"""Anomaly detection with a generative adversarial network (section 5.1; Deecke et al., 2018)."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from baselines.deep import DeepBaseline, Network
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from utils.backend import backend, input_gradient, loss_and_gradients, stateless_step
from utils.batches import predict
from utils.detector import to_unit_range
from utils.device import use_xla
from utils.optimizers import Adam
from utils.settings import number, optional, setting, whole_number
from utils.training import Checkpoint


@dataclass(eq=False, repr=False, kw_only=True)
class ADGAN(DeepBaseline):
    """How well a generator of normal images, given some steps to adapt, makes an image.

    Training: a Wasserstein GAN. The critic is the shared encoder with one linear output, the
    generator the shared decoder from N(0, I) of latent_dim. The critic's gradients between real and
    generated images are held at norm 1 by a penalty with coefficient gradient_penalty; what it sees
    is generated with moving statistics, which move once a generator step. Each of `epochs` has
    steps_per_epoch generator steps, with critic_steps each; Adam with learning_rate, beta 0 and
    0.9.

    Scoring: for each of n_seeds latent vectors z, scoring_steps Adam steps (beta_1 0.5) on z with
    z_learning_rate, in turn with steps on a copy of the generator's weights with
    weights_learning_rate; every image and z starts from the trained weights (`Reconstruction`). The
    score is minus the mean over the z of the mean squared error that is left. All images have the
    same first z, so that the score of an image depends on nothing else.

    pairs_at_once pairs of image and z are adapted at once, or one image's where it has more.
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

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        settings = self.settings_
        shape, latent, seed = x.shape[1:], settings.latent_dim, settings.seed
        critic = convolutional_encoder(shape, 1, None, seed=seed, dtype=self.precision_)
        generator = convolutional_decoder(shape, latent, seed=seed + 1, dtype=self.precision_)
        gan = WassersteinGAN(critic, generator, settings)
        rng = np.random.default_rng(seed)
        steps = max(1, round(settings.epochs * settings.steps_per_epoch))
        batches = [self._draw(rng, len(x)) for _ in range(steps)]
        self._train(gan, x, checkpoint, callbacks, batches=batches)
        z = rng.standard_normal((settings.n_seeds, latent)).astype(np.float32)
        adapted = convolutional_decoder(shape, latent)  # in float32
        adapted.set_weights(generator.get_weights())
        self.network_ = Reconstruction(adapted, z, settings)
        # products of matrices, no convolutions: here XLA is three times as fast on a CPU too
        self.network_.jit_compile = backend() != "torch"

    def _draw(self, rng, n):
        """Which of n images each critic step of one generator step sees, none of them twice."""
        size, steps = self.settings_.batch_size, self.settings_.critic_steps
        parts = [rng.choice(n, size, replace=size > n) for _ in range(steps)]
        return np.concatenate(parts)

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        images = max(1, self.settings_.pairs_at_once // self.settings_.n_seeds)
        errors = predict(self.network_, x, images, to_unit_range, "ADGAN, scoring", self.verbose)
        return {"own": -errors.astype(np.float64)}


class WassersteinGAN(Network):
    """Trains the critic on each part of a batch of real images, then the generator once."""

    def __init__(self, critic, generator, settings):
        super().__init__(name="ADGAN")
        self.batch_size, self.critic_steps = settings.batch_size, settings.critic_steps
        self.noise = keras.random.SeedGenerator(settings.seed)
        self.shares = keras.random.SeedGenerator(settings.seed + 1)

        def generate(x, training):
            shape = ops.shape(x)[0], settings.latent_dim
            return generator(keras.random.normal(shape, seed=self.noise), training=training)

        def critic_loss(x):
            fake = ops.stop_gradient(generate(x, training=False))
            share = keras.random.uniform((ops.shape(x)[0], 1, 1, 1), seed=self.shares)
            penalty = gradient_penalty(critic, share * x + (1 - share) * fake)
            loss = ops.mean(critic(fake, training=True)) - ops.mean(critic(x, training=True))
            return loss + settings.gradient_penalty * penalty

        def generator_loss(x):
            return -ops.mean(critic(generate(x, training=True), training=True))

        self.networks = critic, generator
        self.losses_of = critic_loss, generator_loss
        self.optimizers = [Adam(settings.learning_rate, beta_1=0.0, beta_2=0.9) for _ in range(2)]
        for optimizer, network in zip(self.optimizers, self.networks, strict=True):
            optimizer.build(network.trainable_variables)
        self.critic_state = self.optimizers[0].variables  # which `compile` does not know of
        self.compile(self.optimizers[1], jit_compile=use_xla())  # it counts this model's steps
        self.built = True

    def call(self, x):
        return x

    def train_step(self, *arguments):
        *state, (x,) = arguments
        return stateless_step(self, self._steps, *state, x) if state else self._steps(x)

    def _steps(self, x):
        for step in range(self.critic_steps):
            part = x[step * self.batch_size : (step + 1) * self.batch_size]
            critic = self._step(0, part)
        return {"critic": critic, "generator": self._step(1, part)}

    def _step(self, which, x):
        """Trains one of the two networks; returns its loss."""
        trained = self.networks[which].trainable_variables
        loss, gradients = loss_and_gradients(self, lambda: self.losses_of[which](x), trained)
        self.optimizers[which].apply(gradients, trained)
        return loss


def gradient_penalty(critic: keras.Model, x):
    """The mean of (||gradient of critic at x|| - 1)^2: both sides of 1 are penalised."""
    gradient = input_gradient(critic, x, training=True)
    norm = ops.sqrt(ops.sum(gradient**2, axis=(1, 2, 3)) + 1e-12)
    return ops.mean((norm - 1) ** 2)


class Reconstruction(Network):
    """Images (n, h, w, c) to the mean errors (n,) of the generators adapted to them.

    The steps on the weights are in training mode, as in the authors' code, and their batch is one
    generated image. So the normalisation after the dense layer gives its beta, whatever z is: that
    beta and what comes after it are adapted, alike for all z of an image.
    """

    def __init__(self, generator, z, settings):
        super().__init__(name="reconstruction")
        self.generator, self.z, self.settings = generator, z, settings
        self.built = True

    def call(self, x):
        n, settings = ops.shape(x)[0], self.settings

        def error(weights, z=None):
            images = generate_each(self.generator, weights, z)
            return ops.mean((images - x[:, None]) ** 2, axis=(2, 3, 4))

        def start(value):
            value = ops.broadcast_to(ops.convert_to_tensor(value)[None], (n, *value.shape))
            return value, ops.zeros_like(value), ops.zeros_like(value)

        def step(t, state):
            z, *weights = (value for value, _, _ in state)
            slopes = input_gradient(lambda z: error(weights, z), z), *input_gradient(error, weights)
            rates = settings.z_learning_rate, *[settings.weights_learning_rate] * len(weights)
            return [adam_step(t, *each) for each in zip(state, slopes, rates, strict=True)]

        state = [start(value) for value in (self.z, *adapted_weights(self.generator))]
        state = ops.fori_loop(0, settings.scoring_steps, step, state)
        z, *weights = (value for value, _, _ in state)
        return ops.mean(error(weights, z), axis=1)


def adam_step(t, state: tuple, gradient, learning_rate):
    """Step t = 0, 1, ... of keras.optimizers.Adam(beta_1=0.5) on a value and its moments."""
    value, m, v = state
    t = ops.cast(t, "float32") + 1
    m = 0.5 * m + 0.5 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    rate = learning_rate * ops.sqrt(1 - 0.999**t) / (1 - 0.5**t)
    return value - rate * m / (ops.sqrt(v) + 1e-7), m, v


def adapted_weights(generator: keras.Model) -> list[keras.Variable]:
    """All trainable ones but the dense layer's kernel and bias and its normalisation's gamma."""
    return generator.trainable_variables[3:]


def generate_each(generator: keras.Model, weights: list, z=None):
    """Images (n, s, h, w, c) by the generator with weights[:][i] for images i of s latent vectors.

    weights: for each of `adapted_weights`, its values with a leading axis of n. z: (n, s, d), with
    the moving statistics of training; None: an image each (s = 1), with the statistics of that
    image, as in training mode.
    """
    weights = iter(weights)
    dense, normalisation, *others = generator.layers[1:]
    x = next(weights)[:, None]
    if z is not None:
        deviation = ops.sqrt(normalisation.moving_variance + normalisation.epsilon)
        x = x + (dense(z) - normalisation.moving_mean) * normalisation.gamma / deviation
    for layer in others:
        if isinstance(layer, layers.Reshape):
            x = ops.reshape(x, (-1, x.shape[1], *layer.target_shape))
        elif isinstance(layer, layers.Conv2DTranspose):
            x = conv_transpose_each(x, next(weights)) + next(weights)[:, None, None, None]
        elif isinstance(layer, layers.BatchNormalization):
            mean, variance = layer.moving_mean, layer.moving_variance
            if z is None:
                mean, variance = ops.moments(x, axes=(1, 2, 3), keepdims=True)
            gamma, beta = (next(weights)[:, None, None, None] for _ in range(2))
            x = (x - mean) / ops.sqrt(variance + layer.epsilon) * gamma + beta
        else:
            x = layer(x)
    return x


def conv_transpose_each(x, kernels):
    """Conv2DTranspose of stride 2, padding "same", with a 3x3 kernel for each i of n.

    x: (n, s, h, w, i). kernels: (n, 3, 3, o, i).
    """
    x_rows = ops.einsum("nshwi,nkloi->nswlokh", x, kernels)
    x_rows = ops.einsum("nswlokh,khr->nsrolw", x_rows, _places(x.shape[2]))
    return ops.einsum("nsrolw,lwc->nsrco", x_rows, _places(x.shape[3]))


def _places(side):
    """(3, side, 2 side): 1 where row k of a kernel at pixel h adds to output row r, 2 h + k."""
    return np.stack([np.eye(2 * side, k=k, dtype=np.float32)[::2] for k in range(3)])
