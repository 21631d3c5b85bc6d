"""The arithmetic that the benchmarks' pages quote."""

import keras
import pytest
from keras import layers

from benchmarks.timing import medians, seconds_of

tf = pytest.importorskip("tensorflow")

from benchmarks.baselines import forward, multiply_adds, trained_models  # noqa: E402


def test_multiply_adds_of_layers_counted_by_hand():
    model = keras.Sequential(
        [
            keras.Input((6, 4, 2)),
            layers.Conv2D(5, 3, strides=2, padding="same"),  # 3 x 2 pixels, 3 x 3 x 2 each, of 5
            layers.Conv2DTranspose(7, 3, strides=2, padding="same"),  # each of the 3 x 2 spreads
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    assert forward([model]) == 6 * 18 * 5 + 6 * 9 * 5 * 7 + 6 * 4 * 7 * 10


def test_a_step_is_three_passes_and_six_of_second_order():
    """The encoder: convolutions of stride 2 from 3 to 64, 128 and 256 channels, and a code."""
    encoder = 9 * (16**2 * 3 * 64 + 8**2 * 64 * 128 + 4**2 * 128 * 256) + 4 * 4 * 256 * 256
    (dsebm, _), *_ = trained_models("dsebm", "float32")
    assert multiply_adds("dsebm", dsebm) == 6 * encoder
    (autoencoder, batch), *_ = trained_models("cae_ocsvm", "float32")
    decoder = 9 * (4**2 * 256 * 128 + 8**2 * 128 * 64 + 16**2 * 64 * 3) + 4 * 4 * 256 * 256
    assert multiply_adds("cae_ocsvm", autoencoder) == 3 * (encoder + decoder)
    assert batch[0].shape == (128, 32, 32, 3)


def test_a_median_leaves_the_first_round_out():
    times = {"a": iter([90.0, 1.0, 2.0, 9.0]), "b": iter([70.0, 4.0, 4.0, 5.0])}
    sides = {name: lambda of=of: next(of) for name, of in times.items()}
    assert medians(sides, 3) == {"a": 2.0, "b": 4.0}


def test_seconds_are_those_of_a_call():
    clock = iter([10.0, 16.0])
    called = []
    assert seconds_of(lambda: called.append(1), 3, lambda: next(clock)) == 2.0
    assert len(called) == 3
