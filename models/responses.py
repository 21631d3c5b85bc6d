"""What a classifier of transformations is trained by, and its responses log y(T_i(x))."""

import keras
import numpy as np
from keras import ops

from transformations import TransformationSet, TransformLayer, all_transformed
from utils.backend import keras_defaults
from utils.device import use_xla


@keras_defaults()
def scale_images(images):
    """What the networks take of a symbolic batch: bytes become [-1, 1], floats are there already.

    In float32, whatever the policy.
    """
    if images.dtype == "uint8":
        return keras.layers.Rescaling(2 / 255, -1, dtype="float32")(images)
    return images


def create_trainer(
    network: keras.Model, transformations: TransformationSet, image_shape: tuple, image_dtype: str
) -> keras.Model:
    """From [images (n, h, w, c), t (n,)] to the network's outputs on images i under T_t[i]."""
    images = keras.Input(image_shape, dtype=image_dtype)
    t = keras.Input((), dtype="int32")
    transform = TransformLayer(transformations.transformations)
    return keras.Model([images, t], network(scale_images(transform([images, t]))))


def compile_trainer(
    trainer: keras.Model, optimizer: keras.optimizers.Optimizer, jit_compile: bool | None = None
) -> None:
    """For the cross-entropy, and the accuracy, of each head; jit_compile: None asks `use_xla`."""
    trainer.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=keras.tree.map_structure(lambda head: ["accuracy"], trainer.output),
        jit_compile=use_xla() if jit_compile is None else jit_compile,
    )


def create_responder(
    network: keras.Model,
    transformations: TransformationSet,
    batch_shape: tuple[int, int, int, int],
    image_dtype: str,
    indices: np.ndarray | slice = slice(None),
    features: bool = False,
) -> keras.Model:
    """From b images to {"log_p": log y(T_i(x))}, (b, m, k), for m transformations i by number.

    Of a network with several heads, y is that named "transformations". features: "features" has
    the d numbers of the layer of that name, (b, m, d).
    """
    b, height, width, _ = batch_shape
    maps = transformations.index_maps(height, width)[indices]
    images = keras.Input(batch_shape=batch_shape, dtype=image_dtype)
    logits = network.output
    logits = logits["transformations"] if isinstance(logits, dict) else logits
    outputs = {"log_p": ops.log_softmax(logits, axis=-1)}
    if features:
        outputs["features"] = ops.cast(network.get_layer("features").output, "float32")
    outputs = keras.Model(network.input, outputs)(scale_images(all_transformed(images, maps)))
    shape = b, len(maps)
    responder = keras.Model(
        images, {name: ops.reshape(each, (*shape, -1)) for name, each in outputs.items()}
    )
    responder.jit_compile = use_xla()
    return responder
