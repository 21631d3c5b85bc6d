"""The deep autoencoding Gaussian mixture model (section 5.1; Zong et al., 2018)."""

import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from baselines.deep import DeepBaseline
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from utils.batches import epoch_batches
from utils.device import use_xla
from utils.optimizers import Adam
from utils.settings import number, setting, whole_number

TINY = 1e-6
"""Keeps norms and shares of components away from 0, where their logarithms and slopes end."""

NOT_FINITE = -1e39
"""The score of an energy that is not finite: below that of every float32 energy."""


@dataclass(eq=False, repr=False, kw_only=True)
class DAGMM(DeepBaseline):
    """An autoencoder and a Gaussian mixture of its code and its errors, trained together.

    The mixture, of n_components, sees representation_dim linear code units, the relative Euclidean
    distance of the reconstruction and its cosine similarity. The loss is the mean squared error,
    plus energy_weight times the mean energy (minus the log-likelihood), plus covariance_weight
    times the sum of the inverse diagonals of the covariances, to which covariance_epsilon is added;
    Adam with learning_rate. The score is minus the energy under the mixture of the last batch of
    training; energies that are not finite score NOT_FINITE.
    """

    representation_dim: int = setting(5, whole_number())
    n_components: int = setting(3, whole_number())
    energy_weight: float = setting(0.01, number(low_too=True))
    covariance_weight: float = setting(5e-4, number(low_too=True))
    covariance_epsilon: float = setting(1e-3, number())
    batch_size: int = setting(256, whole_number())

    def _train(self, x: np.ndarray) -> keras.Model:
        settings = self.settings_
        network = _Network(x.shape[1:], settings)
        network.compile(Adam(settings.learning_rate), jit_compile=use_xla())
        batches = epoch_batches(len(x), settings.batch_size, settings.epochs, settings.seed)
        self._fit_network(network, x, batches, "DAGMM")
        return network

    def _score(self, x: np.ndarray) -> np.ndarray:
        energies = self._predict(self.network_, x).astype(np.float64)
        return np.where(np.isfinite(energies), -energies, NOT_FINITE)


class _Network(keras.Model):
    """Images (n, h, w, c) to energies (n,); in training, the mixture is that of the batch."""

    def __init__(self, image_shape, settings):
        super().__init__(name="dagmm")
        self.energy_weight = settings.energy_weight
        self.covariance_weight = settings.covariance_weight
        self.epsilon = settings.covariance_epsilon
        seeds = np.random.default_rng(settings.seed).integers(2**31, size=7).tolist()
        code, k = settings.representation_dim, settings.n_components
        self.encoder = convolutional_encoder(image_shape, code, None, seed=seeds.pop())
        self.decoder = convolutional_decoder(image_shape, code, seed=seeds.pop())
        latent = code + 2

        def dense(units, activation):
            return layers.Dense(
                units, activation, kernel_initializer=keras.initializers.GlorotUniform(seeds.pop())
            )

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
            return energy(z, *self.mixture)
        phi, mu, covariance = gaussian_mixture(z, self.estimator(z, training=True), self.epsilon)
        batch_mixture = phi, mu, ops.cholesky(covariance)
        for variable, value in zip(self.mixture, batch_mixture, strict=True):
            variable.assign(value)
        self.add_loss(ops.mean((x - reconstruction) ** 2))
        diagonal = ops.diagonal(covariance, axis1=1, axis2=2)
        self.add_loss(self.covariance_weight * ops.sum(1 / diagonal))
        return energy(z, *batch_mixture)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.energy_weight * ops.mean(y_pred) + sum(self.losses)


def reconstruction_features(x, reconstruction):
    """Relative Euclidean distance and cosine similarity, (n, 2), of (n, h, w, c) and its like."""
    x, reconstruction = layers.Flatten()(x), layers.Flatten()(reconstruction)
    norm, norm_r = _norm(x), _norm(reconstruction)
    cosine = ops.sum(x * reconstruction, axis=1) / (norm * norm_r)
    return ops.stack([_norm(x - reconstruction) / norm, cosine], axis=1)


def gaussian_mixture(z, membership, epsilon: float):
    """Zong's equation 5: shares (k,), means (k, d) and covariances (k, d, d) of points z (n, d).

    membership: (n, k), each row of sum 1. The diagonals grow by epsilon, and by what the rounding
    of float32 may take of it where z is large, so that every covariance has a Cholesky factor.
    """
    count = ops.sum(membership, axis=0) + TINY
    mu = ops.matmul(ops.transpose(membership), z) / count[:, None]
    centred = z[None] - mu[:, None]
    weighted = ops.transpose(membership)[:, :, None] * centred
    covariance = ops.matmul(ops.transpose(weighted, (0, 2, 1)), centred) / count[:, None, None]
    rounding = 1e-6 * ops.trace(covariance, axis1=1, axis2=2)
    diagonal = (epsilon + rounding)[:, None, None] * ops.eye(z.shape[1])
    return count / ops.sum(count), mu, covariance + diagonal


def energy(z, phi, mu, cholesky):
    """Zong's equation 6, minus the log-likelihood (n,) of z (n, d), by log-sum-exp over k.

    The covariances come as their lower Cholesky factors (k, d, d).
    """
    centred = ops.transpose(z[None] - mu[:, None], (0, 2, 1))
    whitened = ops.linalg.solve_triangular(cholesky, centred, lower=True)
    log_root = ops.sum(ops.log(ops.diagonal(cholesky, axis1=1, axis2=2)), axis=1)
    log_norm = ops.log(phi) - log_root - 0.5 * z.shape[1] * math.log(2 * math.pi)
    return -ops.logsumexp(log_norm[:, None] - 0.5 * ops.sum(whitened**2, axis=1), axis=0)


def _norm(x):
    return ops.sqrt(ops.maximum(ops.sum(x**2, axis=1), TINY))
