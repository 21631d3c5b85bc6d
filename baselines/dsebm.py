"""Deep structured energy-based models (section 5.1; Zhai et al., 2016)."""

from dataclasses import dataclass

import numpy as np
from keras import layers, ops

from baselines.deep import Autoencoder, DeepBaseline, Network
from models.encoders_decoders import convolutional_encoder
from utils.backend import input_gradient
from utils.device import use_xla
from utils.settings import number, setting, whole_number
from utils.training import Checkpoint


@dataclass(eq=False, repr=False, kw_only=True)
class DSEBM(DeepBaseline):
    """An energy learnt by score matching: a step down its gradient is to remove noise.

    The energy is E(x) = 1/2 ||x - b||^2 - sum_j f_j(x), with the encoder f of representation_dim
    ReLU units and a learnt image b. Training makes x' - dE/dx' of x' = x + N(0, noise^2) return to
    x, by mean squared error and Adam with learning_rate. The score is -E.
    """

    representation_dim: int = setting(256, whole_number())
    noise: float = setting(0.5, number(low_too=True))

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        settings = self.settings_
        how = {"seed": settings.seed, "dtype": self.precision_}
        self.network_ = EnergyModel(x.shape[1:], settings.representation_dim, **how)
        self.network_.jit_compile = use_xla()
        denoiser = Denoiser(self.network_, settings.noise, settings.seed)
        self._train(denoiser, x, checkpoint, callbacks)


class EnergyModel(Network):
    """Images (n, h, w, c) to energies (n,). how: seed and dtype of the encoder."""

    def __init__(self, image_shape: tuple[int, int, int], representation_dim: int, **how):
        super().__init__(name="energy")
        self.encoder = convolutional_encoder(image_shape, representation_dim, "relu", **how)
        self.b = self.add_weight(shape=image_shape, initializer="zeros", name="b")
        self.built = True

    def call(self, x, training=False):
        prior = ops.sum((x - self.b) ** 2, axis=(1, 2, 3)) / 2
        return prior - ops.sum(self.encoder(x, training=training), axis=1)


class Denoiser(Network):
    """Images to x' - dE/dx', where x' is noisy in training."""

    def __init__(self, energy, noise, seed):
        super().__init__(name="DSEBM")
        self.energy = energy
        self.noise = layers.GaussianNoise(noise, seed=seed)
        self.built = True

    def call(self, x, training=False):
        x = self.noise(x, training=training)
        return x - input_gradient(self.energy, x, training=training)

    loss_of = Autoencoder.loss_of
