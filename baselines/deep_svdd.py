"""One-class Deep SVDD (Ruff et al., 2018), named E2E-OC-SVM in section 5.1.

Where the article and its authors' releases differ, it is as in the release for Theano, which made
the published numbers: docs/differences.md.
"""

from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops
from sklearn.decomposition import sparse_encode
from sklearn.feature_extraction.image import PatchExtractor

from baselines.deep import SCORING_BATCH, Autoencoder, DeepBaseline, Network
from models.layers import BatchNormalization
from utils.batches import epoch_batches, predict
from utils.datasets import random_part
from utils.detector import to_unit_range
from utils.device import use_xla
from utils.optimizers import Adam, step_schedule
from utils.settings import number, optional, setting, whole_number
from utils.training import Checkpoint

FINE_TUNING = 100 / 350, 100 / 150
"""The share of the autoencoder's epochs, and of Deep SVDD's, at a tenth of the learning rate."""

PRETRAINING = 350 / 150
"""Epochs of the autoencoder for one of Deep SVDD."""

SLOPE = 0.01
"""Of leaky ReLU."""

DICTIONARY_IMAGES, DICTIONARY_STEPS = 500, 1000
"""What the autoencoder's first kernels are learnt from: random images, and steps of 10 patches."""


@dataclass(eq=False, repr=False, kw_only=True)
class DeepSVDD(DeepBaseline):
    """A network that maps normal images close to a centre c.

    A LeNet without biases, its weights those of an autoencoder's encoder, has codes f(x) of
    representation_dim; c is their mean over the training images, where components within 0.1 of 0
    are pushed to +-0.1. The loss is the mean of ||f(x) - c||^2 and weight_decay / 2 times the sum
    of squares of all kernels. Adam with learning_rate, a tenth of it for the last two thirds of the
    epochs, of the autoencoder's for the last two sevenths. pretraining_epochs: those of the
    autoencoder, whose loss is the mean of the squared errors' sum over pixels; None is 7/3 of
    `epochs`, 350 for 150, and 0 leaves it out. held_out: the random share of the images that
    training does not see, as in the release. Images enter with their contrast normalised and
    training's range of that scaled to [0, 1], which does not depend on the range of the pixels. The
    first kernels of the autoencoder are a dictionary of the images' patches (`patch_kernels`).
    The score is -||f(x) - c||^2.
    """

    representation_dim: int = setting(128, whole_number())
    weight_decay: float = setting(1e-6, number(low_too=True))
    pretraining_epochs: float | None = setting(None, optional(number(low_too=True)))
    held_out: float = setting(0.2, number(below=1.0, low_too=True))
    epochs: float = setting(150, number())
    batch_size: int = setting(200, whole_number())
    learning_rate: float = setting(1e-4, number())

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        settings = self.settings_
        x = random_part(x, max(1, round((1 - settings.held_out) * len(x))), settings.seed)
        encoder, decoder, normalise = self._lenet(x)
        epochs, pretraining = settings.epochs, settings.pretraining_epochs
        if pretraining is None:
            pretraining = PRETRAINING * epochs
        if pretraining:
            some = random_part(x, DICTIONARY_IMAGES, settings.seed)
            images = ops.convert_to_numpy(normalise(to_unit_range(some)))
            first = next(each for each in encoder.layers if isinstance(each, layers.Conv2D))
            first.kernel.assign(patch_kernels(images, first.filters, settings.seed))
            autoencoder = _Autoencoder(encoder, decoder, normalise)
            self._fit_model(autoencoder, x, pretraining, 0, checkpoint, callbacks)
        encoder.jit_compile = use_xla()
        centre = predict(encoder, x, SCORING_BATCH, to_unit_range).mean(axis=0)
        self.network_ = _Distance(encoder, push_from_zero(centre))
        self._fit_model(self.network_, x, epochs, 1, checkpoint, callbacks)

    def _fit_model(self, model, x, epochs, phase, checkpoint, callbacks):
        settings = self.settings_
        batches = fixed_batches(len(x), settings.batch_size, epochs, settings.seed)
        drop = 1 - FINE_TUNING[phase]
        rate = step_schedule(settings.learning_rate, len(batches), (drop,), 0.1)
        model.compile(Adam(rate, epsilon=1e-8), jit_compile=use_xla())
        self._train(model, x, checkpoint, callbacks, batches=batches, phase=phase)

    def _lenet(self, x):
        """The encoder, from images in [-1, 1] to codes, the decoder, what it makes of images.

        Without biases: with them, f could be the constant c. Kernels start from Glorot's uniform
        distribution, those of convolutions times sqrt 2.
        """
        height, width, channels = x.shape[1:]
        side, units = height // 8, self.settings_.representation_dim
        if height != width or height % 8 or units % side**2:
            raise ValueError(
                f"images of {height}x{width} and a code of {units}: Deep SVDD takes square images, "
                "their side s a multiple of 8 such that (s / 8)^2 divides representation_dim"
            )
        policy = {"dtype": self.precision_}
        penalty = keras.regularizers.L2(self.settings_.weight_decay / 2)
        seeds = np.random.default_rng(self.settings_.seed)

        def kernel(gain):
            initializer = keras.initializers.VarianceScaling(
                gain, mode="fan_avg", distribution="uniform", seed=int(seeds.integers(2**31))
            )
            return {"kernel_initializer": initializer, "kernel_regularizer": penalty}

        def conv(y, filters):
            how = kernel(gain=2.0) | policy
            return layers.Conv2D(filters, 5, padding="same", use_bias=False, **how)(y)

        def normalised(y, filters):
            return BatchNormalization(momentum=0.9, epsilon=1e-4, **policy)(conv(y, filters))

        def block(y, filters, resize):
            return resize(**policy)(layers.LeakyReLU(SLOPE, **policy)(normalised(y, filters)))

        low, high = contrast_limits(x)

        def normalise(images):
            return (normalise_contrast(images) - low) / (high - low)

        images = keras.Input(x.shape[1:], dtype="float32")
        y = normalise(images)
        for filters in (32, 64, 128):
            y = block(y, filters, layers.MaxPooling2D)
        y = layers.Dense(units, use_bias=False, **kernel(gain=1.0))(layers.Flatten()(y))
        encoder = keras.Model(images, y, name="encoder")

        codes = keras.Input((units,))
        y = layers.Reshape((side, side, units // side**2))(layers.LeakyReLU(SLOPE)(codes))
        for filters in (128, 64, 32):
            y = block(y, filters, layers.UpSampling2D)
        decoded = layers.Activation("sigmoid")(normalised(y, channels))
        return encoder, keras.Model(codes, decoded, name="decoder"), normalise


def fixed_batches(n: int, batch_size: int, epochs: float, seed: int) -> list[np.ndarray]:
    """`epoch_batches` that are always of the same images; their order is new each epoch."""
    batches = epoch_batches(n, batch_size, 1, seed)
    order = epoch_batches(len(batches), 1, epochs, seed)
    return [batches[int(each[0])] for each in order]


def patch_kernels(images: np.ndarray, atoms: int, seed: int) -> np.ndarray:
    """Kernels (5, 5, c, atoms) learnt from 5x5 patches of images (n, h, w, c), as released.

    The release has images as (n, c, h, w), and calls the patches' numbers, taken as (h, w, c) of
    what is not, (c, 5, 5); its convolution turns the kernels by 180 degrees.
    """
    n, height, width, channels = images.shape
    mixed = images.transpose(0, 3, 1, 2).reshape(n, height, width, channels)
    patches = PatchExtractor(patch_size=(5, 5)).transform(mixed).reshape(-1, 25 * channels)
    scale = patches.std(axis=0)
    patches = (patches - patches.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    found = learnt_atoms(patches.astype(np.float64), atoms, np.random.default_rng(seed))
    kernels = found.reshape(atoms, channels, 5, 5)[:, :, ::-1, ::-1]
    return kernels.transpose(2, 3, 1, 0).astype(np.float32)


def learnt_atoms(x: np.ndarray, atoms: int, rng: np.random.Generator) -> np.ndarray:
    """Atoms (atoms, d) of x (n, d), learnt online as in scikit-learn 0.18, the release's version.

    MiniBatchDictionaryLearning with batches of 10 and alpha 1, whose step towards an atom leaves
    out that it is to be divided by the atom's own code (scikit-learn's issue 4866), so that atoms
    come out more alike.
    """
    variances, axes = np.linalg.eigh(x.T @ x)
    found = rng.normal(size=(x.shape[1], max(atoms, x.shape[1])))
    found[:, : len(axes)] = (axes * np.sqrt(np.maximum(variances, 0.0)))[:, ::-1]
    found, order = found[:, :atoms], rng.permutation(len(x))
    codes, products = np.zeros((atoms, atoms)), np.zeros((x.shape[1], atoms))
    for step in range(DICTIONARY_STEPS):
        batch = x[np.take(order, range(10 * step, 10 * step + 10), mode="wrap")]
        code = sparse_encode(batch, found.T, algorithm="lasso_lars", alpha=1.0)
        weight = min(10.0 * (step + 1), step + 91.0)
        kept = (weight - 9) / (weight + 1)
        codes = kept * codes + code.T @ code
        products = kept * products + batch.T @ code
        rest = products - found @ codes
        for k in range(atoms):
            rest += np.outer(found[:, k], codes[k])
            found[:, k] = rest @ codes[k]
            if np.linalg.norm(found[:, k]) < 1e-10:  # no patch has it
                found[:, k], codes[k] = rng.normal(size=len(found)), 0.0
            found[:, k] /= np.linalg.norm(found[:, k])
            rest -= np.outer(found[:, k], codes[k])
    return found.T


def normalise_contrast(images):
    """Images minus their mean, over their mean absolute deviation; 0 where they are constant."""
    images = ops.subtract(images, ops.mean(images, axis=(1, 2, 3), keepdims=True))
    deviation = ops.mean(ops.abs(images), axis=(1, 2, 3), keepdims=True)
    return images / ops.maximum(deviation, 1e-6)


def contrast_limits(x: np.ndarray) -> tuple[float, float]:
    """The least and the greatest pixel of training images x with their contrast normalised."""
    parts = (normalise_contrast(to_unit_range(x[i : i + 512])) for i in range(0, len(x), 512))
    lows, highs = zip(*((float(ops.min(y)), float(ops.max(y))) for y in parts), strict=True)
    return min(lows), max(*highs, min(lows) + 1e-6)


def push_from_zero(centre: np.ndarray) -> np.ndarray:
    """The centre with components within 0.1 of 0 at +-0.1: at 0, weights of 0 would be optimal."""
    return np.where(np.abs(centre) < 0.1, np.where(centre < 0, -0.1, 0.1), centre)


class _Autoencoder(Autoencoder):
    """By the squared errors' sum over the pixels of images with their contrast normalised."""

    def __init__(self, encoder, decoder, normalise):
        super().__init__(encoder, decoder)
        self.normalise = normalise

    def loss_of(self, x, outputs):
        return ops.mean(ops.sum((self.normalise(x) - outputs) ** 2, axis=(1, 2, 3)))


class _Distance(Network):
    """Images to squared distances from the centre, (n,)."""

    def __init__(self, encoder, centre):
        super().__init__(name="Deep_SVDD")
        self.encoder = encoder
        self.centre = self.add_weight(shape=centre.shape, trainable=False, name="centre")
        self.centre.assign(centre)
        self.built = True

    def call(self, x, training=False):
        return ops.sum((self.encoder(x, training=training) - self.centre) ** 2, axis=1)
