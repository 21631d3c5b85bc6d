import keras
import numpy as np
import pytest
from sklearn.decomposition import sparse_encode

from baselines import deep_svdd
from baselines.deep_svdd import (
    DeepSVDD,
    _Autoencoder,
    _Distance,
    contrast_limits,
    fixed_batches,
    learnt_atoms,
    normalise_contrast,
    patch_kernels,
    push_from_zero,
)
from utils.detector import to_unit_range
from utils.metrics import auroc
from utils.optimizers import step_schedule


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), np.float64)


def test_contrast_does_not_depend_on_brightness_or_range():
    x = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)).astype("float32")
    normalised = numpy(normalise_contrast(x))
    np.testing.assert_allclose(normalised.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.abs(normalised).mean(axis=(1, 2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(numpy(normalise_contrast(0.3 * x + 0.1)), normalised, atol=1e-5)
    assert contrast_limits(x) == pytest.approx((normalised.min(), normalised.max()))


def test_components_near_0_are_pushed_away():
    centre = np.array([-3.0, -0.1, -0.05, 0.0, 0.02, 0.1, 2.0])
    np.testing.assert_array_equal(push_from_zero(centre), [-3, -0.1, -0.1, 0.1, 0.1, 0.1, 2])


class Recorded(DeepSVDD):
    """Keeps what each of the two trainings starts from."""

    def _fit_model(self, model, x, epochs, *how):
        code = numpy(model.encoder(to_unit_range(x), training=False))
        self.starts.append((epochs, model.encoder.get_weights(), code))
        self.losses.append([mean_loss(model, x)])
        super()._fit_model(model, x, epochs, *how)
        self.losses[-1].append(mean_loss(model, x))
        self.ends.append(model.encoder.get_weights())
        self.rates.append(numpy(model.optimizer.learning_rate))


def mean_loss(model, x):
    """With the statistics of these images, as in training, and without a trace of it."""
    statistics = [numpy(variable) for variable in model.non_trainable_variables]
    x = keras.ops.convert_to_tensor(to_unit_range(x))
    loss = numpy(model.loss_of(x, model(x, training=True)))
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    return loss


def test_tells_fours_from_noise_starting_from_the_autoencoder(digits):
    fours, x = digits.x_train[digits.y_train == 4], digits.x_test[digits.y_test == 4]
    fours, x = fours[:, ::2, ::2], x[:, ::2, ::2]
    noise = np.random.default_rng(1).integers(0, 256, x.shape).astype(np.uint8)
    x, normal = np.concatenate([x, noise]), np.arange(2 * len(x)) < len(x)
    detector = Recorded(epochs=6, batch_size=16, learning_rate=1e-2, verbose=0)
    detector.starts, detector.ends, detector.rates, detector.losses = [], [], [], []
    scores = detector.fit(fours).score_samples(x)
    assert auroc(normal, scores) > 0.9
    for before, after in detector.losses:
        assert after < 0.2 * before

    (pretraining, initial, _), (training, weights, code) = detector.starts
    assert (pretraining, training) == (pytest.approx(14), 6)
    for end, start in zip(detector.ends[0], weights, strict=True):
        np.testing.assert_array_equal(end, start)
    assert any((a != b).any() for a, b in zip(initial, weights, strict=True))
    np.testing.assert_allclose(detector.rates, 1e-3, rtol=1e-5)  # of the last epochs

    network = detector.network_
    centre = numpy(network.centre)
    np.testing.assert_allclose(centre, push_from_zero(code.mean(axis=0)), atol=1e-4)
    distance = np.sum((numpy(network.encoder(to_unit_range(x))) - centre) ** 2, axis=1)
    np.testing.assert_allclose(scores, -distance, rtol=1e-3, atol=1e-4)


def test_the_rate_falls_at_epochs_250_of_350_and_50_of_150(monkeypatch):
    asked = []

    def schedule(rate, steps, drops, factor):
        asked.append((rate, steps, *drops, factor))
        return step_schedule(rate, steps, drops, factor)

    monkeypatch.setattr(deep_svdd, "step_schedule", schedule)
    monkeypatch.setattr(DeepSVDD, "_train", lambda *_, **__: None)
    DeepSVDD(epochs=3, verbose=0).fit(np.zeros((10, 8, 8, 1), np.uint8))
    expected = [(1e-4, 7, 250 / 350, 0.1), (1e-4, 3, 50 / 150, 0.1)]
    assert asked == [pytest.approx(each) for each in expected]


def test_there_are_no_biases(digits):
    """Kernels are trained, and what the normalisation has of its own, which is not decayed."""
    detector = DeepSVDD()
    detector._begin((16, 16, 1), "uint8")
    encoder, decoder, _ = detector._lenet(digits.x_train[:4])
    for variable in encoder.trainable_variables + decoder.trainable_variables:
        assert variable.path.endswith(("kernel", "gamma", "beta"))
        assert (variable.regularizer is not None) == variable.path.endswith("kernel")
    shapes = [
        tuple(variable.shape)
        for variable in encoder.trainable_variables
        if variable.path.endswith("kernel")
    ]
    assert shapes == [(5, 5, 1, 32), (5, 5, 32, 64), (5, 5, 64, 128), (512, 128)]


def test_losses_and_initial_weights_are_those_of_the_authors_release(digits):
    """Sums over pixels and codes, half the decay; Glorot's bounds, of convolutions by sqrt 2."""
    detector = DeepSVDD(weight_decay=0.1)
    detector._begin((16, 16, 1), "uint8")
    x = to_unit_range(digits.x_train[:6])
    encoder, decoder, normalise = detector._lenet(digits.x_train[:6])
    decay = 0.0
    for variable in encoder.trainable_variables + decoder.trainable_variables:
        if variable.path.endswith("kernel"):
            *field, inputs, outputs = variable.shape
            bound = np.sqrt(6 / (np.prod(field) * (inputs + outputs)) * (2 if field else 1))
            assert 0.99 * bound < np.abs(numpy(variable)).max() <= bound * (1 + 1e-6)
            decay += 0.05 * np.sum(numpy(variable) ** 2)
    autoencoder = _Autoencoder(encoder, decoder, normalise)
    loss = float(autoencoder.compute_loss(x, y_pred=autoencoder(x, training=False)))
    normalised = x - x.mean(axis=(1, 2, 3), keepdims=True)
    normalised /= np.abs(normalised).mean(axis=(1, 2, 3), keepdims=True)
    normalised = (normalised - normalised.min()) / (normalised.max() - normalised.min())
    error = np.sum((normalised - numpy(decoder(encoder(x)))) ** 2) / 6
    assert loss == pytest.approx(error + decay, rel=1e-4)

    network = _Distance(encoder, np.full(128, 0.3, np.float32))
    loss = float(network.compute_loss(y_pred=network(x, training=False)))
    kernels = [v for v in encoder.trainable_variables if v.path.endswith("kernel")]
    decay = 0.05 * sum(np.sum(numpy(kernel) ** 2) for kernel in kernels)
    distance = np.sum((numpy(encoder(x)) - 0.3) ** 2) / 6
    assert loss == pytest.approx(distance + decay, rel=1e-4)


def test_a_fifth_of_the_images_is_held_out(monkeypatch):
    seen = []
    monkeypatch.setattr(DeepSVDD, "_fit_model", lambda self, model, x, *how: seen.append(x))
    x = np.arange(100, dtype=np.uint8).repeat(64).reshape(100, 8, 8, 1)
    for settings in ({}, {}, {"seed": 1}, {"held_out": 0}):
        DeepSVDD(**settings, pretraining_epochs=0, verbose=0).fit(x)
    chosen = [set(part[:, 0, 0, 0]) for part in seen]
    assert [len(each) for each in chosen] == [80, 80, 80, 100]
    assert chosen[0] == chosen[1] != chosen[2]


def test_images_of_odd_sides_are_refused():
    with pytest.raises(ValueError, match="images of 20x20 and a code of 128"):
        DeepSVDD().fit(np.zeros((2, 20, 20, 1), np.uint8))


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
    kernels = patch_kernels(x, 2, seed=0)
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


def test_atoms_of_unit_length_along_what_the_patches_have(monkeypatch):
    """Patches of three directions, of which each has one, and a fourth that none has."""
    rng = np.random.default_rng(0)
    which, sizes = rng.integers(0, 3, 500), rng.uniform(5, 10, 500) * rng.choice([-1, 1], 500)
    x = sizes[:, None] * np.eye(8)[which]
    monkeypatch.setattr(deep_svdd, "DICTIONARY_STEPS", 100)
    atoms = learnt_atoms(x, 4, rng)
    assert atoms.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    np.testing.assert_allclose(np.sort(np.abs(atoms @ np.eye(8)[:3].T).max(axis=0)), 1, atol=1e-6)


def test_a_step_of_the_dictionary_is_the_old_one(monkeypatch):
    """Each atom along what the others leave of the products, weighted by its row of codes."""
    x = np.random.default_rng(0).normal(size=(10, 6)) @ np.diag([9, 7, 5, 3, 2, 1])
    monkeypatch.setattr(deep_svdd, "DICTIONARY_STEPS", 1)
    found = learnt_atoms(x, 3, np.random.default_rng(1))
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


def test_trains_as_the_authors_release(monkeypatch):
    """First kernels, which epochs and batches there are, Adam's epsilon, the decoder's end."""
    made = []

    def keep(model, batches_of, *, total_steps, steps_per_epoch, **_):
        model.optimizer.build(model.trainable_variables)
        epochs = [batches_of(e) for e in range(total_steps // steps_per_epoch)]
        made.append((model, [[e(i)[0] for i in range(steps_per_epoch)] for e in epochs]))

    def kernels(images, atoms, seed):
        assert images.shape == (16, 16, 16, 3) and images.min() >= 0 and images.max() <= 1
        return np.full((5, 5, 3, atoms), 0.25)

    monkeypatch.setattr("baselines.deep.fit_steps", keep)
    monkeypatch.setattr(deep_svdd, "patch_kernels", kernels)
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    how = {"representation_dim": 8, "batch_size": 4, "epochs": 3, "seed": 1, "verbose": 0}
    DeepSVDD(**how).fit(x)
    (autoencoder, first), (network, second) = made
    assert isinstance(autoencoder.decoder.layers[-2], keras.layers.BatchNormalization)
    assert network.encoder is autoencoder.encoder
    kernel = next(w for w in network.encoder.get_weights() if w.ndim == 4)
    np.testing.assert_array_equal(kernel, 0.25)
    assert (len(first), len(second)) == (7, 3)
    assert len({frozenset(batch.tobytes() for batch in epoch) for epoch in first + second}) == 1
    assert len({tuple(batch.tobytes() for batch in epoch) for epoch in first}) > 1
    assert {model.optimizer.epsilon for model, _ in made} == {1e-8}
    made.clear()
    DeepSVDD(**how, pretraining_epochs=0).fit(x)
    kernel = next(w for w in made[0][0].encoder.get_weights() if w.ndim == 4)
    assert not np.any(kernel == 0.25)


@pytest.mark.parametrize("shape", [(20, 8, 8, 1), (1, 8, 8, 3)])
@pytest.mark.parametrize("kind", ["alike", "edges"])
def test_kernels_of_images_with_little_in_them(shape, kind):
    """Fewer numbers in a patch than atoms, constant images, constant edges."""
    x = np.full(shape, 0.5, np.float32)
    if kind == "edges":
        inner = np.random.default_rng(0).uniform(size=(len(x), 4, 4, shape[-1]))
        x[:, 2:6, 2:6] = inner
    kernels = patch_kernels(x, 32, seed=0)
    assert kernels.shape == (5, 5, shape[-1], 32)
    np.testing.assert_allclose(np.linalg.norm(kernels.reshape(-1, 32), axis=0), 1, rtol=1e-5)
