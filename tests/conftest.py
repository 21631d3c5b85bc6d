"""What tests share: the expected values, and small images on which detectors train in seconds."""

import os
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from utils.startup import load_keras

# no GPU: the processes that tests start would run out of its memory beside this one
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"
load_keras()
# the same examples in every run, however slow the machine is just then
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("same", derandomize=True, suppress_health_check=slow)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def golden():
    """Expected values from an independent implementation: see each test for what they are of."""
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        return dict(file)


def create_small_network(input_shape, num_classes, *, seed, dtype, **_):
    """One convolution in the place of the wide residual network, quickly built and trained."""
    from keras import Input, Sequential, initializers, layers

    seeds = [initializers.GlorotUniform(seed + i) for i in range(2)]
    return Sequential(
        [
            Input(input_shape),
            layers.Conv2D(4, 3, use_bias=False, kernel_initializer=seeds[0]),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.Flatten(name="features"),
            layers.Dense(num_classes, kernel_initializer=seeds[1]),
        ]
    )


@pytest.fixture
def small_network(monkeypatch):
    """Detectors train `create_small_network`."""
    import models.transformation_detector as module

    monkeypatch.setattr(module, "create_wide_residual_network", create_small_network)


@pytest.fixture(autouse=True)
def short_dictionary(monkeypatch):
    """Deep SVDD learns its first kernels in half a second, which takes five."""
    monkeypatch.setattr("baselines.deep_svdd.DICTIONARY_STEPS", 100)


not_of_tf_data = pytest.mark.filterwarnings("ignore:Even though the `tf.config")
"""What TensorFlow says with `eagerly`: tf.data runs as ever."""


@pytest.fixture
def eagerly():
    """Without tracing, which takes longer than a step or two."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as load_dataset gives them: 16x16x1 bytes."""
    from utils.datasets import load_dataset

    return load_dataset("digits")


def watched(step, checkpoint=None):
    """A callback that keeps a training's state after a step, and counts the steps.

    checkpoint: it also keeps, beside it, what a kill in the next step would leave of it.
    """
    import keras

    class Watched(keras.callbacks.Callback):
        state, steps = None, 0

        def on_train_begin(self, logs=None):
            self.keep()

        def on_train_batch_begin(self, batch, logs=None):
            if self.is_there() and checkpoint:
                shutil.copy(checkpoint, checkpoint.with_name("left.checkpoint.keras"))

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            self.keep()

        def keep(self):
            if self.is_there():
                variables = [*self.model.variables, *self.model.optimizer.variables]
                self.state = [keras.ops.convert_to_numpy(each).copy() for each in variables]

        def is_there(self):
            return int(self.model.optimizer.iterations) == step

    return Watched()


@pytest.fixture
def fed(monkeypatch):
    """The pairs that trainings are fed, a list for each that the test appends."""
    import models.transformation_detector
    import models.two_headed
    import utils.batches
    import utils.training

    def pair_batches(x, pairs, n_transforms, batch_size, *arguments, **more):
        batch = utils.batches.pair_batches(x, pairs, n_transforms, batch_size, *arguments, **more)

        def noted(index):
            asked.append((index, pairs, batch_size))
            return batch(index)

        return noted

    def batches(n, make):
        for number in range(n):
            asked.clear()
            make(number)
            index, pairs, size = asked[0]
            fed[-1].append(pairs[index * size : (index + 1) * size])
        return utils.batches.batches(n, make)

    fed, asked = [], []
    for module in (models.transformation_detector, models.two_headed):
        monkeypatch.setattr(module, "pair_batches", pair_batches)
    monkeypatch.setattr(utils.training, "batches", batches)
    return fed


def assert_resumed(unbroken, resumed, fed, epochs, n_done):
    """Equal bits of all that the next steps depend on, and the pairs that were left to see."""
    assert len(unbroken.state) == len(resumed.state)
    for one, other in zip(unbroken.state, resumed.state, strict=True):
        np.testing.assert_array_equal(one, other)
    pairs, pairs_left = map(np.concatenate, fed)
    np.testing.assert_array_equal(pairs, np.concatenate(epochs))
    np.testing.assert_array_equal(pairs_left, pairs[n_done:])
    rates = [float(each.model.optimizer.learning_rate) for each in (unbroken, resumed)]
    assert rates[0] == pytest.approx(rates[1])
