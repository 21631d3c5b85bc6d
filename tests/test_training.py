from unittest import mock

import keras
import numpy as np
import pytest

from utils.batches import pair_batches
from utils.training import Checkpoint, fit_steps


def trainer():
    images, t = keras.Input((2, 2, 1)), keras.Input((), dtype="int32")
    outputs = keras.layers.Dense(2, kernel_initializer="zeros")(keras.layers.Flatten()(images))
    model = keras.Model([images, t], outputs)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(model, path, total_steps=6, fingerprint="one"):
    x = np.random.default_rng(0).uniform(-1, 1, (6, 2, 2, 1)).astype("float32")
    checkpoint = Checkpoint(path, 0.0, fingerprint)

    def batches_of(epoch):
        return pair_batches(x, np.random.default_rng(epoch).permutation(12), 2, batch_size=4)

    fit_steps(
        model,
        batches_of,
        steps_per_epoch=3,
        total_steps=total_steps,
        checkpoint=checkpoint,
        learning_rate=1e-3,
        verbose=0,
    )
    return checkpoint


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


def test_a_checkpoint_holds_weights_optimiser_steps_and_seconds(tmp_path):
    path = tmp_path / "run.checkpoint.keras"
    whole, broken, resumed = trainer(), trainer(), trainer()
    train(whole, None)
    seconds = train(broken, path, total_steps=4).seconds
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    resumed.optimizer.build(resumed.trainable_variables)
    checkpoint = Checkpoint(path, 0.0, "one")
    assert checkpoint.restore(resumed) == 4 and checkpoint.seconds == pytest.approx(seconds)
    for found, expected in zip(state(resumed), state(broken), strict=True):
        np.testing.assert_array_equal(found, expected)
    train(resumed, path)
    for found, expected in zip(state(resumed), state(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_short_epochs_share_a_call_of_fit_and_go_on_within_one(monkeypatch):
    """Each call costs some tenths of a second: 10 steps in calls of 6, begun anew after step 4."""
    monkeypatch.setattr("utils.training.LEAST_STEPS", 5)
    fed, calls = [], []

    class Recorder(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            calls.append(len(fed))

    def batches_of(epoch):
        def batch(index):
            fed.append((epoch, index))
            return (np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int32)), np.zeros(4)

        return batch

    model = trainer()
    how = {"steps_per_epoch": 3, "learning_rate": 1e-3, "verbose": 0, "callbacks": [Recorder()]}
    for done, total in ((0, 4), (4, 10)):
        model.optimizer.build(model.trainable_variables)
        checkpoint = Checkpoint(None, 0.0, "one")
        monkeypatch.setattr(checkpoint, "restore", mock.Mock(return_value=done))
        fit_steps(model, batches_of, total_steps=total, checkpoint=checkpoint, **how)
    assert int(model.optimizer.iterations) == 10 and len(calls) == 3
    steps = list(dict.fromkeys(fed))  # the first of each call is asked for twice, for its shapes
    assert steps == [divmod(step, 3) for step in range(10)]


def test_a_checkpoint_of_another_training_or_a_damaged_one_says_what_to_delete(tmp_path):
    path = tmp_path / "run.checkpoint.keras"
    train(trainer(), path, total_steps=2)
    with pytest.raises(ValueError, match=r"run\.checkpoint\.keras is the checkpoint of .*delete"):
        train(trainer(), path, fingerprint="other")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"run\.checkpoint\.keras is damaged .*delete it"):
            train(trainer(), path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint.keras"
    model = trainer()
    checkpoint = train(model, path, total_steps=2)
    before = path.read_bytes()

    def full(model, partial):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.saving, "save_model", full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint.save(model)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_divergence_is_named_with_the_learning_rate():
    model, checkpoint = trainer(), Checkpoint(None, 0.0, "one")
    checkpoint.check_finite(model, 3, 0.5)
    model.layers[-1].bias.assign([1.0, np.nan])
    with pytest.raises(ValueError, match=r"diverged: .*/bias is not finite after 3 steps"):
        checkpoint.check_finite(model, 3, 0.5)


@pytest.mark.parametrize("total_steps", [6, 9])
def test_a_training_that_diverged_is_never_taken_for_finished(tmp_path, total_steps):
    """Nor gone on with: its checkpoint, from before the check, is removed."""
    path = tmp_path / "run.checkpoint.keras"
    model = trainer()
    checkpoint = train(model, path, total_steps=6)
    model.layers[-1].bias.assign([1.0, np.nan])
    checkpoint.save(model)
    with pytest.raises(ValueError, match=r"diverged: .*/bias is not finite after 6 steps"):
        train(trainer(), path, total_steps)
    assert not path.exists()


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint.keras"
    train(trainer(), path)
    model = trainer()
    monkeypatch.setattr(model, "load_weights", mock.Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        train(model, path)
