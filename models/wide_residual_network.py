"""The classifier of the transformations: a wide residual network (Zagoruyko & Komodakis, 2016).

Pre-activation blocks, depth 6n + 4, widen factor k. Section 5.3 takes depth 10 and widen factor 4
for 32x32 images, 16 and 8 for 64x64.
"""

import keras
import numpy as np
from keras import layers

from models.layers import BatchNormalization
from utils.backend import keras_defaults


@keras_defaults()
def create_wide_residual_network(
    input_shape: tuple[int, int, int],
    num_classes: int | dict[str, int],
    depth: int,
    widen_factor: int = 1,
    dropout_rate: float = 0.0,
    final_activation: str | None = "softmax",
    *,
    weight_decay: float = 5e-4,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """The paper's network, from images (n, h, w, c) in [-1, 1] to (n, num_classes).

    num_classes by name, as section 5.5 has for "categories" and "transformations", make so many
    heads on the same features, and a dict of their outputs.

    final_activation: "softmax" for probabilities, None for logits. weight_decay: the loss has
    weight_decay / 2 times the sum of squares of every kernel, of batch normalisation's gamma and
    beta and of the last bias; 0 leaves the penalty out. seed makes the initial weights repeatable.
    dtype: Keras's dtype policy for all layers but the last, which stays in float32.

    Raises ValueError where depth is not 6n + 4 or the input is smaller than 4x4.
    """
    network = _Layers(weight_decay, seed, dtype)
    inputs = keras.Input(input_shape, dtype="float32", name="images")
    x = network.features(inputs, depth, widen_factor, dropout_rate)
    several = isinstance(num_classes, dict)
    heads = num_classes if several else {"predictions": num_classes}
    outputs = {name: network.head(x, n, final_activation, name) for name, n in heads.items()}
    name = f"wrn_{depth}_{widen_factor}"
    if several:
        return keras.Model(inputs, outputs, name=f"two_headed_{name}")
    return keras.Model(inputs, outputs["predictions"], name=name)


class _Layers:
    """The network's parts, with the initialisers and the penalty that all of them share."""

    def __init__(self, weight_decay, seed, dtype):
        self.weight_decay = weight_decay
        self.seeds = None if seed is None else np.random.default_rng(seed)
        self.dtype = dtype

    def features(self, inputs, depth, widen_factor, dropout_rate):
        """Images to the flat features that the classification head reads."""
        blocks, remainder = divmod(depth - 4, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth {depth} is not 6n + 4: choose 10, 16, 22, 28, ...")
        if min(inputs.shape[1:3]) < 4:
            raise ValueError(f"images of shape {inputs.shape[1:]} are smaller than 4x4")
        x = self.conv(inputs, 16)
        for group, stride in enumerate((1, 2, 2)):
            for block in range(blocks):
                filters = 16 * 2**group * widen_factor
                x = self.block(x, filters, stride if block == 0 else 1, dropout_rate)
        x = self.bn_relu(x)
        # 8x8 is the whole map at 32x32 pixels and a quarter of it at 64x64, whose 2x2 rest is
        # flattened as it is. Images under 32x32, which the paper has not, leave a smaller map.
        x = layers.AveragePooling2D([min(8, side) for side in x.shape[1:3]], dtype=self.dtype)(x)
        return layers.Flatten(dtype=self.dtype)(x)

    def block(self, x, filters, stride, dropout_rate):
        shortcut = x
        x = self.bn_relu(x)
        if shortcut.shape[-1] != filters:
            shortcut = self.conv(x, filters, size=1, stride=stride)
        x = self.bn_relu(self.conv(x, filters, stride=stride))
        if dropout_rate:
            x = layers.Dropout(dropout_rate, seed=self.seed(), dtype=self.dtype)(x)
        return layers.Add(dtype=self.dtype)([self.conv(x, filters), shortcut])

    def conv(self, x, filters, size=3, stride=1):
        return layers.Conv2D(
            filters,
            size,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, mode="fan_in", distribution="untruncated_normal", seed=self.seed()
            ),
            kernel_regularizer=self.penalty(),
            dtype=self.dtype,
        )(x)

    def bn_relu(self, x):
        x = BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_regularizer=self.penalty(),
            beta_regularizer=self.penalty(),
            dtype=self.dtype,
        )(x)
        return layers.ReLU(dtype=self.dtype)(x)

    def head(self, x, num_classes, activation, name):
        """Uniform in +-1/sqrt(fan_in), the scale of 1/3 being that interval's variance."""
        return layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, mode="fan_in", distribution="uniform", seed=self.seed()
            ),
            kernel_regularizer=self.penalty(),
            bias_regularizer=self.penalty(),
            dtype="float32",
            name=name,
        )(x)

    def penalty(self):
        return keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None

    def seed(self):
        return None if self.seeds is None else int(self.seeds.integers(2**31))
