"""The arithmetic that the benchmarks' pages quote."""

import keras
import numpy as np
import pytest
from keras import layers

from benchmarks import deep_svdd
from benchmarks.deep_svdd import fixed_batches
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


def test_fixed_batches_are_the_same_sets_in_new_orders():
    batches = fixed_batches(10, 4, 6, seed=3)
    epochs = [batches[start : start + 3] for start in range(0, 18, 3)]
    sets = [sorted(tuple(sorted(batch)) for batch in epoch) for epoch in epochs]
    assert sets == [sets[0]] * 6
    assert sorted(np.concatenate(epochs[0])) == list(range(10))
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) > 1
    assert len(fixed_batches(10, 4, 0.5, seed=3)) == 2


def test_a_dictionary_s_atoms_are_turned_into_kernels(monkeypatch):
    """Atom a has number a 75 + c 25 + i 5 + j where the release has channel c, row i, column j."""
    seen = []

    class Learner:
        components_ = np.arange(2 * 75).reshape(2, 75)

        def __init__(self, atoms, **_):
            assert atoms == 2

        def fit(self, patches):
            seen.append(patches)
            return self

    monkeypatch.setattr(deep_svdd, "MiniBatchDictionaryLearning", Learner)
    x = np.random.default_rng(0).uniform(size=(3, 8, 8, 3))
    kernels = deep_svdd.dictionary(x, 2, seed=0)
    i, j, c, a = np.indices((5, 5, 3, 2))
    np.testing.assert_array_equal(kernels, a * 75 + c * 25 + (4 - i) * 5 + (4 - j))
    (patches,) = seen
    assert patches.shape == (3 * 4 * 4, 75)
    np.testing.assert_allclose(patches.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(patches.std(axis=0), 1)


@pytest.mark.parametrize("parts", [[], ["normalised", "dictionary"]])
def test_deep_svdd_has_the_parts_asked_for(parts, monkeypatch):
    made = {}
    monkeypatch.setattr(
        deep_svdd.WithParts, "_fit_model", lambda self, model, *_: made.setdefault("model", model)
    )
    monkeypatch.setattr(deep_svdd, "dictionary", lambda x, n, seed: np.full((5, 5, 3, n), 0.25))
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    deep_svdd.WithParts(parts, representation_dim=8, seed=1, verbose=0).fit(x)
    before_last = made["model"].decoder.layers[-2]
    assert isinstance(before_last, layers.BatchNormalization) == bool(parts)
    assert made["model"].decoder.output_shape == (None, 16, 16, 3)
    first = next(e for e in made["model"].encoder.layers if isinstance(e, layers.Conv2D))
    assert np.all(np.asarray(first.kernel) == 0.25) == bool(parts)
