"""The deep autoencoding Gaussian mixture model (section 5.1; Zong et al., 2018)."""

import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from baselines.deep import DeepBaseline, Network
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from utils.settings import choice, number, setting, whole_number
from utils.training import Checkpoint

TINY = 1e-6
"""Keeps norms and shares of components away from 0, where their logarithms and slopes end."""

FLOOR = 1e-7
"""What the authors' code adds to every determinant and to every component's density."""

NOT_FINITE = -1e39
"""The score of an energy that is not finite: below that of every float32 energy."""


@dataclass(eq=False, repr=False, kw_only=True)
class DAGMM(DeepBaseline):
    """An autoencoder and a Gaussian mixture of its code and its errors, trained together.

    The mixture, of n_components, sees representation_dim linear code units, the relative Euclidean
    distance of the reconstruction and its cosine similarity. The loss is the mean squared error,
    plus energy_weight times the mean energy (minus the log-likelihood), plus covariance_weight
    times the sum of the inverse diagonals of the covariances, to which N(1, 0.1^2) times
    covariance_epsilon is added; Adam with learning_rate. The score is minus the energy under the
    mixture of the last batch of training; energies that are not finite score NOT_FINITE.

    density: "floored" is that of the authors' code, phi exp(...) / sqrt(det(2 pi S) + FLOOR) and
    FLOOR more for each component, so that with three of them energies over 15.02 tie and have no
    slope, and none is under about -8.1; "exact" is the density itself.
    """

    representation_dim: int = setting(5, whole_number())
    n_components: int = setting(3, whole_number())
    energy_weight: float = setting(0.01, number(low_too=True))
    covariance_weight: float = setting(5e-4, number(low_too=True))
    covariance_epsilon: float = setting(1e-3, number())
    density: str = setting("floored", choice("floored", "exact"))
    batch_size: int = setting(256, whole_number())

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        self.network_ = _Mixture(x.shape[1:], self.settings_, self.precision_)
        self._train(self.network_, x, checkpoint, callbacks)

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        own = super()._scores(x)["own"]
        return {"own": np.where(np.isfinite(own), own, NOT_FINITE)}


class _Mixture(Network):
    """Images (n, h, w, c) to energies (n,); in training, the mixture is that of the batch."""

    def __init__(self, image_shape, settings, dtype):
        super().__init__(name="DAGMM")
        self.settings = settings
        self.floor = FLOOR if settings.density == "floored" else 0.0
        self.noise = keras.random.SeedGenerator(settings.seed)
        seeds = np.random.default_rng(settings.seed).integers(2**31, size=7).tolist()
        code, k = settings.representation_dim, settings.n_components
        self.encoder = convolutional_encoder(image_shape, code, None, seed=seeds.pop(), dtype=dtype)
        self.decoder = convolutional_decoder(image_shape, code, seed=seeds.pop(), dtype=dtype)
        latent = code + 2

        def dense(units, activation):
            kernel = keras.initializers.GlorotUniform(seeds.pop())
            return layers.Dense(units, activation, kernel_initializer=kernel)

        self.estimator = keras.Sequential(
            [
                keras.Input((latent,)),
                dense(64, "tanh"),
                layers.Dropout(0.5, seed=seeds.pop()),
                dense(10, "tanh"),
                layers.Dropout(0.5, seed=seeds.pop()),
                dense(k, "softmax"),
            ],
            name="estimator",
        )
        shapes = {"phi": (k,), "mu": (k, latent), "cholesky": (k, latent, latent)}
        self.mixture = [
            self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name)
            for name, shape in shapes.items()
        ]
        self.built = True

    def call(self, x, training=False):
        code = self.encoder(x, training=training)
        reconstruction = self.decoder(code, training=training)
        z = ops.concatenate([code, reconstruction_features(x, reconstruction)], axis=1)
        if not training:
            return energy(z, *self.mixture, self.floor)
        membership = self.estimator(z, training=True)
        epsilon = self.settings.covariance_epsilon
        epsilon = keras.random.normal(self.mixture[1].shape, epsilon, epsilon / 10, seed=self.noise)
        phi, mu, covariance = gaussian_mixture(z, membership, epsilon)
        batch_mixture = phi, mu, ops.cholesky(covariance)
        for variable, value in zip(self.mixture, batch_mixture, strict=True):
            variable.assign(value)
        self.add_loss(ops.mean((x - reconstruction) ** 2))
        diagonal = ops.diagonal(covariance, axis1=1, axis2=2)
        self.add_loss(self.settings.covariance_weight * ops.sum(1 / diagonal))
        return energy(z, *batch_mixture, self.floor)

    def loss_of(self, x, outputs):
        return self.settings.energy_weight * ops.mean(outputs)


def reconstruction_features(x, reconstruction):
    """Relative Euclidean distance and cosine similarity, (n, 2), of (n, h, w, c) and its like."""
    norm = _norm(x)
    dot = ops.sum(ops.multiply(x, reconstruction), axis=(1, 2, 3))
    distance = _norm(ops.subtract(x, reconstruction))
    return ops.stack([distance / norm, dot / (norm * _norm(reconstruction))], axis=1)


def gaussian_mixture(z, membership, epsilon):
    """Zong's equation 5: shares (k,), means (k, d) and covariances (k, d, d) of points z (n, d).

    membership: (n, k), each row of sum 1. The diagonals grow by epsilon, a number or (k, d), and by
    what the rounding of float32 may take of it where z is large, so that every covariance has a
    Cholesky factor.
    """
    count = ops.sum(membership, axis=0) + TINY
    mu = ops.matmul(ops.transpose(membership), z) / count[:, None]
    centred = z[None] - mu[:, None]
    weighted = ops.transpose(membership)[:, :, None] * centred
    covariance = ops.matmul(ops.transpose(weighted, (0, 2, 1)), centred) / count[:, None, None]
    rounding = 1e-6 * ops.trace(covariance, axis1=1, axis2=2)
    diagonal = (epsilon + rounding[:, None])[:, :, None] * ops.eye(z.shape[1])
    return count / ops.sum(count), mu, covariance + diagonal


def energy(z, phi, mu, cholesky, floor: float = 0.0):
    """Zong's equation 6, minus the log-likelihood (n,) of z (n, d), by log-sum-exp over k.

    The covariances S come as their lower Cholesky factors (k, d, d). floor is added to every
    det(2 pi S) and to every component's density, by their logarithms: nothing overflows.
    """
    centred = ops.transpose(z[None] - mu[:, None], (0, 2, 1))
    whitened = ops.linalg.solve_triangular(cholesky, centred, lower=True)
    log_det = 2 * ops.sum(ops.log(ops.diagonal(cholesky, axis1=1, axis2=2)), axis=1)
    log_det += z.shape[1] * math.log(2 * math.pi)
    if floor:
        log_det = ops.logaddexp(log_det, math.log(floor))
    log_norm = ops.log(phi) - 0.5 * log_det
    log_density = log_norm[:, None] - 0.5 * ops.sum(whitened**2, axis=1)
    if floor:
        floors = ops.full_like(log_density[:1], math.log(floor * phi.shape[0]))
        log_density = ops.concatenate([log_density, floors])
    return -ops.logsumexp(log_density, axis=0)


def _norm(x):
    return ops.sqrt(ops.maximum(ops.sum(x**2, axis=(1, 2, 3)), TINY))
