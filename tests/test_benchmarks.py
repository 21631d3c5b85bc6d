"""The arithmetic that the benchmarks' pages quote."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.decomposition import sparse_encode

from benchmarks import deep_svdd, folders
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


def test_fixed_batches_are_the_same_sets_in_new_orders():
    batches = fixed_batches(10, 4, 6, seed=3)
    epochs = [batches[start : start + 3] for start in range(0, 18, 3)]
    sets = [sorted(tuple(sorted(batch)) for batch in epoch) for epoch in epochs]
    assert sets == [sets[0]] * 6
    assert sorted(np.concatenate(epochs[0])) == list(range(10))
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) > 1
    assert len(fixed_batches(10, 4, 0.5, seed=3)) == 2


def test_a_dictionary_s_atoms_are_turned_into_kernels(monkeypatch):
    """Atom a has number a 75 + c 25 + i 5 + j where the release has channel c, row i, column j.

    Pixels say where they are: the release's array (n, c, h, w) is read as (n, h, w, c).
    """
    seen = []

    def learn(patches, atoms, rng):
        seen.append(patches)
        return np.arange(atoms * 75).reshape(atoms, 75)

    monkeypatch.setattr(deep_svdd, "learnt_atoms", learn)
    x = np.random.default_rng(0).uniform(size=(1, 6, 6, 3))
    kernels = deep_svdd.dictionary(x, 2, seed=0)
    i, j, c, a = np.indices((5, 5, 3, 2))
    np.testing.assert_array_equal(kernels, a * 75 + c * 25 + (4 - i) * 5 + (4 - j))
    as_read = np.stack([x[0, :, :, each] for each in range(3)]).ravel()
    patches = np.empty((2, 2, 75))
    for row, column, number in np.ndindex(patches.shape):
        i, rest = divmod(number, 15)
        j, c = divmod(rest, 3)
        patches[row, column, number] = as_read[(row + i) * 18 + (column + j) * 3 + c]
    patches = patches.reshape(4, 75)
    expected = (patches - patches.mean(axis=0)) / patches.std(axis=0)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5)


def test_atoms_of_unit_length_along_what_the_patches_have():
    """Patches of three directions, of which each has one, and a fourth that none has."""
    rng = np.random.default_rng(0)
    which, sizes = rng.integers(0, 3, 500), rng.uniform(5, 10, 500) * rng.choice([-1, 1], 500)
    x = sizes[:, None] * np.eye(8)[which]
    atoms = deep_svdd.learnt_atoms(x, 4, rng, steps=100)
    assert atoms.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    np.testing.assert_allclose(np.sort(np.abs(atoms @ np.eye(8)[:3].T).max(axis=0)), 1, atol=1e-6)


def test_a_step_of_the_dictionary_is_the_old_one():
    """Each atom along what the others leave of the products, weighted by its row of codes."""
    x = np.random.default_rng(0).normal(size=(10, 6)) @ np.diag([9, 7, 5, 3, 2, 1])
    found = deep_svdd.learnt_atoms(x, 3, np.random.default_rng(1), steps=1)
    axes, sizes, _ = np.linalg.svd(x.T)
    atoms = axes[:, :3] * sizes[:3]
    code = sparse_encode(x, atoms.T, algorithm="lasso_lars", alpha=1.0)
    codes, products = code.T @ code, x.T @ code
    for k in range(3):
        others = [j for j in range(3) if j != k]
        left = products - sum(np.outer(atoms[:, j], codes[j]) for j in others)
        atoms[:, k] = left @ codes[k]
        atoms[:, k] /= np.linalg.norm(atoms[:, k])
    signs = np.sign(np.sum(found * atoms.T, axis=1, keepdims=True))
    np.testing.assert_allclose(signs * found, atoms.T, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("parts", [[], list(deep_svdd.PARTS)])
def test_deep_svdd_has_the_parts_asked_for(parts, monkeypatch):
    made = []

    def keep(model, batches_of, *, total_steps, steps_per_epoch, **_):
        model.optimizer.build(model.trainable_variables)
        epochs = [batches_of(e) for e in range(total_steps // steps_per_epoch)]
        made.append((model, [[e(i)[0] for i in range(steps_per_epoch)] for e in epochs]))

    monkeypatch.setattr("baselines.deep.fit_steps", keep)
    monkeypatch.setattr(deep_svdd, "dictionary", lambda x, n, seed: np.full((5, 5, 3, n), 0.25))
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    how = {"representation_dim": 8, "batch_size": 4, "epochs": 3, "seed": 1, "verbose": 0}
    deep_svdd.WithParts(parts, **how).fit(x)
    (autoencoder, _), _ = made
    before_last = autoencoder.decoder.layers[-2]
    assert isinstance(before_last, layers.BatchNormalization) == bool(parts)
    assert autoencoder.decoder.output_shape == (None, 16, 16, 3)
    first = next(e for e in autoencoder.encoder.layers if isinstance(e, layers.Conv2D))
    assert np.all(np.asarray(first.kernel) == 0.25) == bool(parts)
    norms = [e for e in autoencoder.encoder.layers if isinstance(e, layers.BatchNormalization)]
    assert [len(e.trainable_variables) for e in norms] == [0 if parts else 2] * 3
    for model, epochs in made:
        trained = {id(variable) for variable in model.trainable_variables}
        assert all((id(e.beta) in trained) != bool(parts) for e in norms)
        assert model.optimizer.epsilon == (1e-8 if parts else 1e-7)
        sets = {frozenset(batch.tobytes() for batch in epoch) for epoch in epochs}
        assert (len(sets) == 1) == bool(parts)
