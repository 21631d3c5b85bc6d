import keras
import numpy as np
import pytest

from baselines import deep
from baselines.adgan import ADGAN
from baselines.dagmm import DAGMM
from baselines.deep_svdd import DeepSVDD
from baselines.dsebm import DSEBM
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from tests.conftest import not_of_tf_data
from utils.batches import epoch_batches
from utils.detector import NotFittedError

SMALL = {
    ADGAN: {"steps_per_epoch": 2, "critic_steps": 1, "n_seeds": 2, "latent_dim": 8},
    DAGMM: {},
    DeepSVDD: {},
    DSEBM: {},
}


def filters(model):
    convolutions = keras.layers.Conv2D | keras.layers.Conv2DTranspose
    found = [layer for layer in model.layers if isinstance(layer, convolutions)]
    assert all(each.kernel_size == (3, 3) and each.strides == (2, 2) for each in found)
    return [each.filters for each in found]


@pytest.mark.parametrize(
    "shape, encoding, decoding",
    [
        ((16, 16, 1), [64, 128, 256], [128, 1]),
        ((32, 32, 3), [64, 128, 256], [128, 64, 3]),
        ((64, 64, 3), [64, 128, 256, 512], [128, 64, 64, 3]),
    ],
)
def test_layers_and_shapes(shape, encoding, decoding):
    encoder = convolutional_encoder(shape, 7, "relu", seed=0)
    decoder = convolutional_decoder(shape, 7, seed=0)
    x = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype("float32")
    codes = np.asarray(keras.ops.convert_to_numpy(encoder(x)))
    images = keras.ops.convert_to_numpy(decoder(10 * codes))
    assert codes.shape == (2, 7) and (codes >= 0).all() and (codes > 0).any()
    assert images.shape == x.shape and np.abs(images).max() <= 1
    assert filters(encoder) == encoding and filters(decoder) == decoding


def test_seeds_repeat_the_weights():
    one, same, other = (convolutional_encoder((16, 16, 1), 4, None, seed=s) for s in (1, 1, 2))
    kernels = [each.get_weights()[-2] for each in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])


@pytest.mark.parametrize("shape", [(28, 28, 1), (4, 4, 1), (32, 16, 3)])
def test_images_that_the_decoder_cannot_make(shape):
    with pytest.raises(ValueError, match=f"got {shape[0]}x{shape[1]}; pad or resize"):
        convolutional_decoder(shape, 4)


def test_epochs_go_through_all_images_in_new_orders():
    batches = epoch_batches(10, 4, 2.5, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2, 4, 4]
    epochs = np.concatenate(batches[:3]), np.concatenate(batches[3:6])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(np.concatenate(epoch_batches(10, 4, 2, 0)), np.hstack(epochs))
    assert len(epoch_batches(10, 4, 0.01, seed=0)) == 1


@not_of_tf_data
@pytest.mark.parametrize("create", SMALL)
def test_one_constant_image_gives_finite_scores(create, eagerly):
    """Zeros, in the middle of the range: no contrast, no norm, no covariance."""
    x = np.zeros((1, 8, 8, 1), np.float32)
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8, 1)).astype("float32")
    detector = create(**SMALL[create], epochs=1, batch_size=4, verbose=0).fit(x)
    scores = detector.score_samples(np.concatenate([x, noise]))
    assert scores.shape == (4,) and scores.dtype == np.float64 and np.isfinite(scores).all()


@pytest.mark.parametrize("create", SMALL)
def test_a_seed_repeats_all_that_training_starts_from(create, monkeypatch):
    """Weights, the states of random generators and the batches: bit for bit.

    What follows is the same but for rounding.
    """
    starts = []

    def record(model, batches_of, *, total_steps, **_):
        batches = [batches_of(0)(i)[0] for i in range(total_steps)]
        starts[-1] += [*map(keras.ops.convert_to_numpy, model.variables), *batches]

    monkeypatch.setattr(deep, "fit_steps", record)
    x = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 1)).astype("float32")
    for seed in (3, 3, 4):
        starts.append([])
        create(**SMALL[create], epochs=2, batch_size=4, seed=seed, verbose=0).fit(x)
    first, same, other = starts
    assert len(first) == len(same) and all(map(np.array_equal, first, same))
    random = [i for i, each in enumerate(first) if each.std() > 0]
    assert random and not any(np.array_equal(first[i], other[i]) for i in random)


@not_of_tf_data
def test_what_makes_no_sense_is_refused(digits, eagerly):
    x = digits.x_train[:8, ::2, ::2]
    with pytest.raises(NotFittedError, match="call fit"):
        DSEBM().score_samples(x)
    for name, kind in (("epochs", "number above 0"), ("batch_size", "whole number of at least 1")):
        with pytest.raises(ValueError, match=f"{name} is 0, expected a {kind}"):
            DSEBM(**{name: 0}).fit(x)
    with pytest.raises(ValueError, match="got shape"):
        DSEBM().fit(x[:0])
    with pytest.raises(ValueError, match=r"training diverged: .* lower learning_rate, now 1e\+39"):
        DSEBM(epochs=1, learning_rate=1e39, verbose=0).fit(x)
