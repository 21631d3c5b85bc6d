"""What tests share: the expected values, and small images on which detectors train in seconds."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    """Expected values from an independent implementation: see each test for what they are of."""
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        return dict(file)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as load_dataset gives them: 16x16x1 bytes."""
    from utils.datasets import load_dataset

    return load_dataset("digits")
