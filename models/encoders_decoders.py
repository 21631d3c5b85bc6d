"""The convolutional encoder and decoder that the deep baselines share (section 5.1)."""

import math

import keras
import numpy as np
from keras import layers

from models.layers import BatchNormalization
from utils.backend import keras_defaults


@keras_defaults()
def convolutional_encoder(
    input_shape: tuple[int, int, int],
    representation_dim: int,
    representation_activation: str | None,
    *,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """From images (n, h, w, c) in [-1, 1] to codes (n, representation_dim).

    3x3 convolutions of stride 2, batch normalisation and ReLU, with 64, 128 and 256 filters, and
    512 for images larger than 32x32; then a dense layer with representation_activation (None:
    linear). seed makes the initial weights repeatable. dtype: Keras's dtype policy for all layers
    but the last, which stays in float32.
    """
    initializers, policy = _initializers(seed), {"dtype": dtype}
    filters = (64, 128, 256, 512) if max(input_shape[:2]) > 32 else (64, 128, 256)
    inputs = x = keras.Input(input_shape, dtype="float32", name="images")
    how = {"strides": 2, "padding": "same"} | policy
    for n in filters:
        x = layers.Conv2D(n, 3, kernel_initializer=next(initializers), **how)(x)
        x = layers.ReLU(**policy)(BatchNormalization(**policy)(x))
    outputs = layers.Dense(
        representation_dim, representation_activation, kernel_initializer=next(initializers)
    )(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name="encoder")


@keras_defaults()
def convolutional_decoder(
    output_shape: tuple[int, int, int],
    representation_dim: int,
    *,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """From codes (n, representation_dim) to images (n, h, w, c) in [-1, 1].

    A dense layer to 4x4x256, then 3x3 transposed convolutions of stride 2 with 128 and 64 filters
    (64 twice for 64x64 images, 128 alone for 16x16), each with batch normalisation and ReLU; the
    last one goes to the image's channels, with tanh. seed, dtype: as of the encoder.

    Raises ValueError for images that are not square or whose side is not 8, 16, 32, 64, ...
    """
    height, width, channels = output_shape
    doublings = round(math.log2(max(height, 8) / 4))
    if height != width or height != 4 * 2**doublings:
        raise ValueError(
            f"the decoder makes square images of side 8, 16, 32, 64, ..., got {height}x{width}; "
            "pad or resize the images"
        )
    initializers, policy = _initializers(seed), {"dtype": dtype}
    inputs = keras.Input((representation_dim,), dtype="float32", name="codes")
    x = layers.Dense(4 * 4 * 256, kernel_initializer=next(initializers), **policy)(inputs)
    x = layers.ReLU(**policy)(BatchNormalization(**policy)(x))
    x = layers.Reshape((4, 4, 256), **policy)(x)
    how = {"strides": 2, "padding": "same"} | policy
    for n in (128, *[64] * (doublings - 2))[: doublings - 1]:
        x = layers.Conv2DTranspose(n, 3, kernel_initializer=next(initializers), **how)(x)
        x = layers.ReLU(**policy)(BatchNormalization(**policy)(x))
    x = layers.Conv2DTranspose(channels, 3, kernel_initializer=next(initializers), **how)(x)
    outputs = layers.Activation("tanh")(x)
    return keras.Model(inputs, outputs, name="decoder")


def _initializers(seed):
    """Initialisers of Keras's default kind for one layer after the other."""
    rng = np.random.default_rng(seed)
    while True:
        yield keras.initializers.GlorotUniform(seed=int(rng.integers(2**31)))
