"""The arithmetic that the benchmarks' pages quote."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks import folders
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


def test_what_a_folder_s_model_tells_from_normal_images():
    """Scores are the first pixel, of the 19 held-out images 1 to 19."""

    class Detector:
        calibration_scores_, false_alarm_rate_ = np.arange(1.0, 20.0), 0.05
        record_, batch_size = {"training_samples": 1280}, 128

        def score_samples(self, x):
            return x[:, 0, 0, 0].astype(float)

    scorer = SimpleNamespace(detector=Detector(), prepare=lambda x: x)
    first = {"normal": [5, 6, 7, 8], "other classes": [0, 0, 7, 9], "8x8": [9, 9, 9, 9]}
    tested = {
        kind: np.full((4, 2, 2, 1), 1) * np.reshape(v, (4, 1, 1, 1)) for kind, v in first.items()
    }
    assert folders.measures(scorer, tested) == {
        "steps": 10,
        "normal flagged": 0.0,
        "other classes": {"auroc": 59.4, "flagged": 50.0},  # 9.5 of 16 pairs
        "8x8": {"auroc": 0.0, "flagged": 0.0},
    }


def test_patches_are_pasted_into_normal_test_images():
    x = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 1), np.uint8)
    data = SimpleNamespace(x_test=x, y_test=np.arange(40) % 2)
    found = folders.test_images(data, SimpleNamespace(label=1, tested=10))
    assert list(found) == ["normal", "other classes", "8x8", "12x12"]
    assert np.all(found["normal"] % 2 == 1) and np.all(found["other classes"] % 2 == 0)
    for side in folders.PATCHES:
        differs = found[f"{side}x{side}"] != found["normal"]
        assert np.all(differs.sum(axis=(1, 2, 3)) == side**2)
        assert np.all(found[f"{side}x{side}"][differs] % 2 == 0)


def test_a_median_leaves_the_first_round_out():
    times = {"a": iter([90.0, 1.0, 2.0, 9.0]), "b": iter([70.0, 4.0, 4.0, 5.0])}
    sides = {name: lambda of=of: next(of) for name, of in times.items()}
    assert medians(sides, 3) == {"a": 2.0, "b": 4.0}


def test_seconds_are_those_of_a_call():
    clock = iter([10.0, 16.0])
    called = []
    assert seconds_of(lambda: called.append(1), 3, lambda: next(clock)) == 2.0
    assert len(called) == 3
