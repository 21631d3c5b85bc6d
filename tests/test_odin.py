import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from baselines.odin import log_maximum_softmax, odin
from models.wide_residual_network import create_wide_residual_network


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def linear(images):
    """A classifier whose gradient by the image can be written down: logits = x W + b."""
    rng = np.random.default_rng(1)
    inputs = keras.Input(images.shape[1:])
    dense = keras.layers.Dense(4)
    network = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.set_weights([rng.normal(size=(90, 4)), rng.normal(size=4)])
    return network


@pytest.mark.parametrize("temperature, perturbation", [(1000, 0.0014), (2, 0.02), (5, 0), (1, 0)])
def test_scores_are_those_of_the_formula(linear, images, temperature, perturbation):
    w, b = (np.asarray(v, np.float64) for v in linear.get_weights())
    x = (2 * (images / 255) - 1).reshape(len(images), -1)
    log_p = log_softmax((x @ w + b) / temperature, axis=1)
    gradient = (w.T[log_p.argmax(1)] - np.exp(log_p) @ w.T) / temperature
    moved = x + 2 * perturbation * np.sign(gradient)  # pixels' range has length 2
    expected = log_softmax((moved @ w + b) / temperature, axis=1).max(1)
    how = {"temperature": temperature, "perturbation": perturbation}
    scores = odin(linear, images, **how)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(odin(linear, 2 * (images / 255) - 1, **how), scores, rtol=1e-5)


def test_the_perturbation_raises_the_maximum_softmax():
    x = np.random.default_rng(2).uniform(-1, 1, (20, 8, 8, 1))
    network = create_wide_residual_network((8, 8, 1), 3, 10, final_activation=None, seed=0)
    still = odin(network, x, temperature=10, perturbation=0)
    moved = odin(network, x, temperature=10, perturbation=1e-3)
    assert (moved > still).all()


def test_certain_classifications_are_still_ranked():
    logits = np.array([[0, 50, 0], [0, 60, 0], [0, 400, 0]])
    expected = -2 * np.exp([-50.0, -60.0, -400.0])
    np.testing.assert_allclose(log_maximum_softmax(logits), expected, rtol=1e-12)
    np.testing.assert_allclose(
        log_maximum_softmax(logits, 100), log_softmax(logits / 100, axis=1).max(1), rtol=1e-12
    )


def test_what_makes_no_sense_is_named(linear, images):
    with pytest.raises(ValueError, match="temperature is 0"):
        odin(linear, images, temperature=0)
    with pytest.raises(ValueError, match="perturbation is -1"):
        odin(linear, images, perturbation=-1)
    coarse = create_wide_residual_network((6, 5, 3), 4, 10, dtype="mixed_bfloat16")
    with pytest.raises(ValueError, match="computes in bfloat16, too coarse"):
        odin(coarse, images)
    with pytest.raises(ValueError, match="shape"):
        odin(linear, images[0])
