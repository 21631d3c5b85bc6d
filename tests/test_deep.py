"""What the deep baselines share: trainings that were killed go on as the unbroken."""

import pickle

import keras
import numpy as np
import pytest

import utils.batches
import utils.training
from baselines import deep
from baselines.adgan import ADGAN
from baselines.dagmm import DAGMM
from baselines.deep_svdd import DeepSVDD
from baselines.dsebm import DSEBM
from baselines.ocsvm import CAEOCSVM
from tests.conftest import not_of_tf_data, watched

SETTINGS = {
    ADGAN: {"latent_dim": 4, "steps_per_epoch": 10, "n_seeds": 1, "epochs": 0.9},
    DAGMM: {"epochs": 3},
    DeepSVDD: {"epochs": 3, "pretraining_epochs": 4, "held_out": 0},
    DSEBM: {"epochs": 3, "representation_dim": 8},
    CAEOCSVM: {"epochs": 3, "representation_dim": 8},
}


@not_of_tf_data
@pytest.mark.parametrize(
    ("create", "step", "before", "total"),
    [
        (ADGAN, 4, 0, 9),
        (DAGMM, 4, 0, 9),
        (DSEBM, 4, 0, 9),
        (CAEOCSVM, 4, 0, 9),
        (DeepSVDD, 10, 0, 21),  # of the autoencoder's 12 steps, before Deep SVDD's 9
        (DeepSVDD, 7, 12, 21),  # of Deep SVDD's
    ],
)
def test_training_that_was_killed_goes_on_as_the_unbroken(
    create, step, before, total, tmp_path, monkeypatch, eagerly
):
    """Equal bits of weights, optimisers and random states, and the batches that were left."""
    fed = []

    def batches(n, make):
        fed[-1] += [make(i)[0] for i in range(n)]
        return utils.batches.batches(n, make)

    monkeypatch.setattr(utils.training, "batches", batches)
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    checkpoint, left = tmp_path / "run.checkpoint.keras", tmp_path / "left.checkpoint.keras"
    unbroken, resumed = watched(step, checkpoint), watched(step)
    for file, watch, every in ((checkpoint, unbroken, 0), (left, resumed, 100)):
        fed.append([])
        detector = create(**SETTINGS[create], batch_size=8, learning_rate=1e-3, verbose=0)
        detector.fit(x, checkpoint=file, checkpoint_seconds=every, callbacks=[watch])
    done = before + step
    assert (unbroken.steps, resumed.steps) == (total, total - done)
    assert len(unbroken.state) == len(resumed.state)
    for one, other in zip(unbroken.state, resumed.state, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(fed[0]) == total
    for one, other in zip(fed[0][done:], fed[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_states_of_random_generators_are_in_the_checkpoint(tmp_path):
    """Keras itself leaves them out."""
    path = tmp_path / "run.checkpoint.keras"

    def noisy():
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.GaussianNoise(1.0, seed=3), keras.layers.Dense(1)]
        )
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    model, restored = noisy(), noisy()
    x = np.zeros((4, 2), np.float32)
    first = keras.ops.convert_to_numpy(model.layers[0](x, training=True))
    utils.training.Checkpoint(path, 0.0, "one").save(model)
    second = keras.ops.convert_to_numpy(model.layers[0](x, training=True))
    assert (first != second).all()
    utils.training.Checkpoint(path, 0.0, "one").restore(restored)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(restored.layers[0](x, training=True)), second
    )


@not_of_tf_data
@pytest.mark.parametrize("create", SETTINGS)
def test_convolutions_compute_in_bfloat16_and_nothing_else_does(create, eagerly, monkeypatch):
    """Against float32: what it changes is small, and weights, outputs and scores are in float32."""
    models, x = [], np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)

    def fit_steps(model, batches_of, **_):
        batch = keras.ops.convert_to_tensor(batches_of(0)(0)[0])
        models.append(model)
        outputs.append(np.asarray(keras.ops.convert_to_numpy(model(batch))))

    monkeypatch.setattr(deep, "fit_steps", fit_steps)
    outputs, scores = [], []
    for precision in ("float32", "mixed_bfloat16"):
        detector = create(**SETTINGS[create], precision=precision, verbose=0).fit(x)
        scores.append(detector.score_samples(x))
    np.testing.assert_allclose(*scores, rtol=0.1, atol=0.1)
    half = len(models) // 2
    for float32, mixed in zip(outputs[:half], outputs[half:], strict=True):
        assert float32.dtype == mixed.dtype == np.float32
        np.testing.assert_allclose(float32, mixed, rtol=0.1, atol=0.1)
    convolutions = keras.layers.Conv2D | keras.layers.Conv2DTranspose
    for i, model in enumerate(models):
        assert all(variable.dtype == "float32" for variable in model.trainable_variables)
        found = [each for each in model._flatten_layers() if isinstance(each, convolutions)]
        dtype = "float32" if i < half else "bfloat16"
        assert found and all(layer.compute_dtype == dtype for layer in found)


@pytest.mark.parametrize("create", SETTINGS)
def test_a_pickle_scores_alike(create):
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    how = {"epochs": 0.2, "precision": "float32", "verbose": 0, "seed": 3}
    detector = create(**SETTINGS[create] | how).fit(x)
    pickled = pickle.dumps(detector)
    keras.config.set_floatx("float16")  # as a user's keras.json may have it
    try:
        again = pickle.loads(pickled)
    finally:
        keras.config.set_floatx("float32")
    np.testing.assert_allclose(again.score_samples(x), detector.score_samples(x), rtol=1e-6)
    for of in (detector, again):
        network = getattr(of, "network_", None)
        assert network is None or network.jit_compile == detector.network_.jit_compile
