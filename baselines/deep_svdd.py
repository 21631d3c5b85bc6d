"""One-class Deep SVDD (Ruff et al., 2018), named E2E-OC-SVM in section 5.1."""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from baselines.deep import DeepBaseline
from models.layers import BatchNormalization
from utils.batches import epoch_batches
from utils.detector import to_unit_range
from utils.device import use_xla
from utils.optimizers import Adam
from utils.settings import number, optional, setting, whole_number

FINE_TUNING = 100 / 250
"""The share of the epochs that goes at a tenth of the learning rate: 150 and 100."""

PRETRAINING = 350 / 250
"""Epochs of the autoencoder for one of Deep SVDD: 250 and 100, where it has 150 and 100."""


@dataclass(eq=False, repr=False, kw_only=True)
class DeepSVDD(DeepBaseline):
    """A network that maps normal images close to a centre c.

    A LeNet without biases, its weights those of an autoencoder's encoder, has codes f(x) of
    representation_dim; c is their mean over the training images, where components within 0.1 of 0
    are pushed to +-0.1. The loss is the mean of ||f(x) - c||^2 and weight_decay / 2 times the sum
    of squares of all kernels. Adam with learning_rate, a tenth of it for the last 40 % of the
    epochs. pretraining_epochs: those of the autoencoder, whose loss is the mean squared error;
    None is 1.4 times `epochs`, as many as published for 250, and 0 leaves it out. Images enter with
    their contrast normalised, as published (`ContrastNormalization`). The score is -||f(x) - c||^2.
    """

    representation_dim: int = setting(128, whole_number())
    weight_decay: float = setting(1e-6, number(low_too=True))
    pretraining_epochs: float | None = setting(None, optional(number(low_too=True)))
    epochs: float = setting(250, number())
    batch_size: int = setting(200, whole_number())
    learning_rate: float = setting(1e-4, number())

    def _train(self, x: np.ndarray) -> keras.Model:
        encoder, decoder = self._lenet(x)
        autoencoder = _Autoencoder(encoder, decoder)
        epochs, pretraining = self.settings_.epochs, self.settings_.pretraining_epochs
        if pretraining is None:
            pretraining = PRETRAINING * epochs
        if pretraining:
            share = FINE_TUNING / PRETRAINING
            self._fit_model(autoencoder, x, pretraining, share, "Deep SVDD, autoencoder")
        encoder.compile(jit_compile=use_xla())
        centre = self._predict(encoder, x).mean(axis=0)
        network = _Distance(encoder, push_from_zero(centre))
        self._fit_model(network, x, epochs, FINE_TUNING, "Deep SVDD")
        return network

    def _score(self, x: np.ndarray) -> np.ndarray:
        return -self._predict(self.network_, x)

    def _fit_model(self, model, x, epochs, fine_tuning, description):
        settings = self.settings_
        batches = epoch_batches(len(x), settings.batch_size, epochs, settings.seed)
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round((1 - fine_tuning) * len(batches))],
            [settings.learning_rate, settings.learning_rate / 10],
        )
        model.compile(Adam(rate), jit_compile=use_xla())
        self._fit_network(model, x, batches, description)

    def _lenet(self, x):
        """The encoder, from images in [-1, 1] to codes, and the decoder to normalised images."""
        height, width, channels = x.shape[1:]
        side, units = height // 8, self.settings_.representation_dim
        if height != width or height % 8 or units % side**2:
            raise ValueError(
                f"images of {height}x{width} and a code of {units}: Deep SVDD takes square images, "
                "their side s a multiple of 8 such that (s / 8)^2 divides representation_dim"
            )
        parts = _Layers(self.settings_.weight_decay, self.settings_.seed)
        images = keras.Input(x.shape[1:], dtype="float32")
        y = ContrastNormalization(*contrast_limits(x))(images)
        for filters in (32, 64, 128):
            y = layers.MaxPooling2D()(parts.bn_leaky(parts.conv(y, filters)))
        encoder = keras.Model(images, parts.dense(layers.Flatten()(y), units), name="encoder")

        codes = keras.Input((units,))
        y = layers.Reshape((side, side, units // side**2))(layers.LeakyReLU(0.1)(codes))
        for filters in (128, 64, 32):
            y = layers.UpSampling2D()(parts.bn_leaky(parts.conv(y, filters)))
        decoded = layers.Activation("sigmoid")(parts.conv(y, channels))
        return encoder, keras.Model(codes, decoded, name="decoder")


class ContrastNormalization(layers.Layer):
    """`normalise_contrast`, then [low, high] is scaled to [0, 1].

    The outcome does not depend on the range of the pixels. low and high: see `contrast_limits`.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0):
        super().__init__()
        self.low, self.high = low, high

    def call(self, images):
        return (normalise_contrast(images) - self.low) / (self.high - self.low)


def normalise_contrast(images):
    """Images minus their mean, over their mean absolute deviation; 0 where they are constant."""
    images = ops.subtract(images, ops.mean(images, axis=(1, 2, 3), keepdims=True))
    deviation = ops.mean(ops.abs(images), axis=(1, 2, 3), keepdims=True)
    return images / ops.maximum(deviation, 1e-6)


def contrast_limits(x: np.ndarray) -> tuple[float, float]:
    """The least and the greatest pixel of training images x with their contrast normalised."""
    limits = []
    for start in range(0, len(x), 512):
        part = ops.convert_to_numpy(normalise_contrast(to_unit_range(x[start : start + 512])))
        limits.append((part.min(), part.max()))
    low, high = np.transpose(limits)
    return float(low.min()), max(float(high.max()), float(low.min()) + 1e-6)


def push_from_zero(centre: np.ndarray) -> np.ndarray:
    """The centre with components within 0.1 of 0 at +-0.1: at 0, weights of 0 would be optimal."""
    return np.where(np.abs(centre) < 0.1, np.where(centre < 0, -0.1, 0.1), centre)


class _Autoencoder(keras.Model):
    """Images to the mean squared errors of their reconstructions, (n,)."""

    def __init__(self, encoder, decoder):
        super().__init__(name="autoencoder")
        self.encoder, self.decoder = encoder, decoder
        self.normalise = encoder.layers[1]
        self.built = True

    def call(self, x, training=False):
        decoded = self.decoder(self.encoder(x, training=training), training=training)
        return ops.mean((self.normalise(x) - decoded) ** 2, axis=(1, 2, 3))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(y_pred) + sum(self.losses)


class _Distance(keras.Model):
    """Images to squared distances from the centre, (n,)."""

    def __init__(self, encoder, centre):
        super().__init__(name="deep_svdd")
        self.encoder = encoder
        self.centre = self.add_weight(shape=centre.shape, trainable=False, name="centre")
        self.centre.assign(centre)
        self.built = True

    def call(self, x, training=False):
        return ops.sum((self.encoder(x, training=training) - self.centre) ** 2, axis=1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(y_pred) + sum(self.losses)


class _Layers:
    """The networks' parts, without biases: with them, f could be the constant c."""

    def __init__(self, weight_decay, seed):
        self.penalty = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
        self.seeds = np.random.default_rng(seed)

    def kernel(self):
        initializer = keras.initializers.GlorotUniform(int(self.seeds.integers(2**31)))
        return {
            "use_bias": False,
            "kernel_initializer": initializer,
            "kernel_regularizer": self.penalty,
        }

    def conv(self, x, filters):
        return layers.Conv2D(filters, 5, padding="same", **self.kernel())(x)

    def dense(self, x, units):
        return layers.Dense(units, **self.kernel())(x)

    def bn_leaky(self, x):
        x = _PlainBatchNormalization(momentum=0.9, epsilon=1e-4)(x)
        return layers.LeakyReLU(0.1)(x)


class _PlainBatchNormalization(BatchNormalization):
    """Without the affine part: gamma and beta, which the fused kernel takes, stay 1 and 0."""

    def build(self, input_shape):
        super().build(input_shape)
        self.gamma.trainable = self.beta.trainable = False
