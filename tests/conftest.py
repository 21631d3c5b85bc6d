"""What tests share: the expected values, and small images on which detectors train in seconds."""

import os
from pathlib import Path

import numpy as np
import pytest

from utils.startup import load_keras

# no GPU: the processes that tests start would run out of its memory beside this one
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"
load_keras()


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
            layers.Flatten(),
            layers.Dense(num_classes, kernel_initializer=seeds[1]),
        ]
    )


@pytest.fixture
def small_network(monkeypatch):
    """Detectors train `create_small_network`."""
    import models.transformation_detector as module

    monkeypatch.setattr(module, "create_wide_residual_network", create_small_network)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as load_dataset gives them: 16x16x1 bytes."""
    from utils.datasets import load_dataset

    return load_dataset("digits")
