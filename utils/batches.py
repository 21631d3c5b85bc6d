"""Batches: what Keras's `fit` is fed, made while others run, and what models make of them."""

import math
from collections.abc import Callable, Iterator

import keras
import numpy as np

from utils.backend import backend, keras_defaults
from utils.progress import progress


def batches(n: int, make: Callable[[int], tuple]):
    """n batches for `Model.fit`: batch i is make(i), nested NumPy arrays (b, ...).

    They come in their order, and may differ in b alone. A PyDataset; on TensorFlow, a tf.data
    pipeline of it without autotuning, whose thread makes the end of `fit` wait for up to a minute.
    """
    dataset = _Batches(n, make)
    if backend() != "tensorflow":
        return dataset
    import tensorflow as tf

    def spec(array):
        array = np.asarray(array)
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        tf.data.Dataset.from_generator(
            lambda: map(make, range(n)), output_signature=keras.tree.map_structure(spec, make(0))
        )
        .apply(tf.data.experimental.assert_cardinality(n))
        .prefetch(4)
        .with_options(options)
    )


class _Batches(keras.utils.PyDataset):
    def __init__(self, n, make):
        super().__init__()
        self.n, self.make = n, make

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.make(index)


def epoch_pairs(n: int, n_transforms: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's shuffle of all pairs, as int32 numbers image * n_transforms + t."""
    shuffled = np.arange(n * n_transforms, dtype=np.int32)
    np.random.default_rng((seed, epoch)).shuffle(shuffled)
    return shuffled


def pair_batches(
    x: np.ndarray,
    pairs: np.ndarray,
    n_transforms: int,
    batch_size: int,
    labels: Callable[[np.ndarray, np.ndarray], np.ndarray | dict] = lambda image, t: t,
    augment: Callable[[int, np.ndarray], np.ndarray] = lambda index, images: images,
) -> Callable[[int], tuple]:
    """Batches ([images, t], labels) in the order of `pairs`, by number, the last perhaps smaller.

    x: (n, h, w, c) images, of which only a batch is ever copied. pairs: int32 numbers of (image, t)
    pairs, image * n_transforms + t. labels: from a batch's image numbers and t to its labels.
    augment: from a batch's number and its images to those that take their place.
    """

    def batch(index):
        part = pairs[index * batch_size : (index + 1) * batch_size]
        image, t = part // n_transforms, part % n_transforms
        return (augment(index, x[image]), t), labels(image, t)

    return batch


def predictions(
    model: keras.Model,
    x: np.ndarray,
    batch_size: int,
    prepare: Callable[[np.ndarray], np.ndarray] = lambda part: part,
    description: str = "",
    verbose: int = 0,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (part, a model's outputs for prepare(x[part])), batch by batch; part: a slice."""
    for start in progress(range(0, len(x), batch_size), description, unit="batch", verbose=verbose):
        batch = x[start : start + batch_size]
        n = len(batch)
        if n < batch_size:  # one shape for all batches: nothing is compiled again
            batch = np.concatenate([batch, np.repeat(batch[-1:], batch_size - n, axis=0)])
        with keras_defaults():
            outputs = model.predict_on_batch(prepare(batch))
        yield (
            slice(start, start + n),
            keras.tree.map_structure(lambda each, n=n: np.asarray(each)[:n], outputs),
        )


def predict(model: keras.Model, x: np.ndarray, batch_size: int, *how, **more) -> np.ndarray:
    """A model's outputs for all of x, by `predictions`."""
    parts = predictions(model, x, min(batch_size, len(x)), *how, **more)
    return np.concatenate([outputs for _, outputs in parts])


def epoch_batches(n: int, batch_size: int, epochs: float, seed: int) -> list[np.ndarray]:
    """The indices of every training batch: each epoch goes once through n images in new order.

    epochs may be a fraction; there is at least one batch. An epoch's last batch may be smaller.
    """
    rng = np.random.default_rng(seed)
    steps_per_epoch = math.ceil(n / batch_size)
    indices = []
    for _ in range(math.ceil(epochs)):
        order = rng.permutation(n)
        indices += [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return indices[: max(1, round(epochs * steps_per_epoch))]
