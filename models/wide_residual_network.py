"""The classifier of the transformations: a wide residual network (Zagoruyko & Komodakis, 2016).

Pre-activation blocks, depth 6n + 4, widen factor k. Section 5.3 takes depth 10 and widen factor 4
for 32x32 images, 16 and 8 for 64x64.
"""

import keras
import numpy as np
from keras import layers

from models.layers import BatchNormalization
from utils.backend import keras_defaults

HIDDEN_UNITS = 512
"""Of a hidden layer between features and head."""


@keras_defaults()
def create_wide_residual_network(
    input_shape: tuple[int, int, int],
    num_classes: int | dict[str, int],
    depth: int,
    widen_factor: int = 1,
    dropout_rate: float = 0.0,
    final_activation: str | None = "softmax",
    *,
    hidden_layers: int = 0,
    weight_decay: float = 5e-4,
    seed: int | None = None,
    dtype: str | None = None,
) -> keras.Model:
    """The paper's network, from images (n, h, w, c) in [-1, 1] to (n, num_classes).

    num_classes by name, as section 5.5 has for "categories" and "transformations", make so many
    heads on the same features, and a dict of their outputs.

    hidden_layers: so many layers of HIDDEN_UNITS, each with batch normalisation and ReLU, lie
    between the features, which are the output of the layer "features", and each head.
    final_activation: "softmax" for probabilities, None for logits. weight_decay: the loss has
    weight_decay / 2 times the sum of squares of every kernel, of batch normalisation's gamma and
    beta and of the last bias; 0 leaves the penalty out. seed makes the initial weights repeatable.
    dtype: Keras's dtype policy for all layers but the last, which stays in float32.

    Raises ValueError where depth is not 6n + 4 or the input is smaller than 4x4.
    """
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1:
        raise ValueError(f"depth {depth} is not 6n + 4: choose 10, 16, 22, 28, ...")
    if min(input_shape[:2]) < 4:
        raise ValueError(f"images of shape {input_shape} are smaller than 4x4")
    seeds = np.random.default_rng(seed)
    penalty = keras.regularizers.L2(weight_decay / 2) if weight_decay else None
    policy = {"dtype": dtype}

    def kernel(scale=2.0, distribution="untruncated_normal"):
        how = {"mode": "fan_in", "distribution": distribution, "seed": next_seed()}
        initializer = keras.initializers.VarianceScaling(scale, **how)
        return {"kernel_initializer": initializer, "kernel_regularizer": penalty}

    def next_seed():
        return None if seed is None else int(seeds.integers(2**31))

    def conv(x, filters, size=3, stride=1):
        how = kernel() | policy
        return layers.Conv2D(filters, size, stride, "same", use_bias=False, **how)(x)

    def bn_relu(x):
        how = {"gamma_regularizer": penalty, "beta_regularizer": penalty} | policy
        return layers.ReLU(**policy)(BatchNormalization(momentum=0.9, epsilon=1e-5, **how)(x))

    def block(x, filters, stride):
        shortcut = x
        x = bn_relu(x)
        if shortcut.shape[-1] != filters:
            shortcut = conv(x, filters, size=1, stride=stride)
        x = bn_relu(conv(x, filters, stride=stride))
        if dropout_rate:
            x = layers.Dropout(dropout_rate, seed=next_seed(), **policy)(x)
        return layers.Add(**policy)([conv(x, filters), shortcut])

    def head(x, n, name):
        for _ in range(hidden_layers):
            x = bn_relu(layers.Dense(HIDDEN_UNITS, use_bias=False, **kernel(), **policy)(x))
        # uniform in +-1/sqrt(fan_in), the scale of 1/3 being that interval's variance
        how = kernel(1 / 3, "uniform") | {"bias_regularizer": penalty, "dtype": "float32"}
        return layers.Dense(n, final_activation, name=name, **how)(x)

    inputs = keras.Input(input_shape, dtype="float32", name="images")
    x = conv(inputs, 16)
    for group, stride in enumerate((1, 2, 2)):
        for i in range(blocks):
            x = block(x, 16 * 2**group * widen_factor, stride if i == 0 else 1)
    x = bn_relu(x)
    # 8x8 is the whole map at 32x32 pixels and a quarter of it at 64x64, whose 2x2 rest is
    # flattened as it is. Images under 32x32, which the paper has not, leave a smaller map.
    x = layers.AveragePooling2D([min(8, side) for side in x.shape[1:3]], **policy)(x)
    x = layers.Flatten(**policy, name="features")(x)
    name = f"wrn_{depth}_{widen_factor}"
    if isinstance(num_classes, dict):
        outputs = {each: head(x, n, each) for each, n in num_classes.items()}
        return keras.Model(inputs, outputs, name=f"two_headed_{name}")
    return keras.Model(inputs, head(x, num_classes, "predictions"), name=name)
