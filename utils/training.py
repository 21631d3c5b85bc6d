"""Training that can be stopped at any step and gone on with."""

import functools
import json
import math
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from utils.batches import batches
from utils.files import refusing, replacing
from utils.progress import Lines, progress

LEAST_STEPS = 200
"""Of a call of Keras's `fit`, which takes some tenths of a second beside its steps."""


def fit_steps(
    model: keras.Model,
    batches_of: Callable[[int], Callable[[int], tuple]],
    *,
    steps_per_epoch: int,
    total_steps: int,
    checkpoint: "Checkpoint",
    learning_rate: float,
    description: str = "training",
    callbacks: list[keras.callbacks.Callback] = (),
    expected_steps: Callable[[], int] | None = None,
    phase: int = 0,
    verbose: int = 1,
) -> None:
    """Train a compiled model for total_steps batches, from where the checkpoint left off.

    batches_of: from an epoch, 0, 1, ..., to its batches, a function from 0..steps_per_epoch - 1 to
    what a step takes (`utils.batches.batches`). Keras and callbacks see as one epoch as many whole
    ones as make LEAST_STEPS; the last is cut where the steps end, or where a callback sets the
    model's stop_training; expected_steps says how many there will be by then, for the progress.
    phase: how many other trainings of the same fit, with the same checkpoint, come before; where it
    is the checkpoint of a later one, nothing is done.

    Raises ValueError where training diverges, whose checkpoint is removed; learning_rate is for
    that message.
    """
    model.optimizer.build(model.trainable_variables)
    done = checkpoint.restore(model, phase)
    if done is None:
        return
    checkpoint.check_finite(model, done, learning_rate)
    if checkpoint.notes.get("ended") and verbose:
        print(f"its {description} had ended; to train for longer, delete it", flush=True)
    bar = TrainingProgress(description, total_steps, done, verbose, expected_steps)
    batches_of = functools.lru_cache(maxsize=1)(batches_of)

    def batch(step):
        epoch, index = divmod(step, steps_per_epoch)
        return batches_of(epoch)(index)

    steps_per_fit = math.ceil(LEAST_STEPS / steps_per_epoch) * steps_per_epoch
    while done < total_steps and not checkpoint.notes.get("ended"):
        number = done // steps_per_fit
        end = min((number + 1) * steps_per_fit, total_steps)
        model.fit(
            batches(end - done, lambda i, done=done: batch(done + i)),
            initial_epoch=number,
            epochs=number + 1,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, checkpoint, bar],  # a checkpoint has what callbacks noted
        )
        done = int(model.optimizer.iterations)
        checkpoint.check_finite(model, done, learning_rate)
        checkpoint.notes["ended"] = bool(model.stop_training)
    bar.close()
    checkpoint.save(model)


def diverged(what: str, learning_rate: float) -> ValueError:
    """The error to raise where a training has left numbers that are not finite."""
    return ValueError(f"training diverged: {what}; lower learning_rate, now {learning_rate:g}")


class Checkpoint(keras.callbacks.Callback):
    """Training's state in one Keras archive: weights, optimiser, steps done, and seconds.

    The optimiser's step count is the position in the shuffle. The states of random generators, of
    noise and dropout, are there too, which Keras itself leaves out. The file is replaced, never
    rewritten, so it is whole whenever the process dies. It is written after each epoch and, within
    one, every so many seconds. fingerprint: text that must be equal for training to go on. notes:
    what a callback is to find again, as JSON has it.
    """

    def __init__(self, path: str | os.PathLike | None, every: float, fingerprint: str):
        super().__init__()
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.suffix != ".keras":
            raise ValueError(f"{path} must end in .keras: a checkpoint is a Keras archive")
        self.every = every
        self.fingerprint = fingerprint
        self.seconds = 0.0
        self.phase = 0
        self.notes = {}
        self._started = self._saved = time.perf_counter()

    def restore(self, model, phase: int = 0) -> int | None:
        """Puts the file's state into the model of a phase; returns the steps done.

        They are 0 without a file, or with that of an earlier phase, and None with a later one's.

        Raises ValueError for the file of another training, and for a damaged one.
        """
        self.phase, self.notes = phase, {}
        if self.path is None or not self.path.exists():
            return 0
        damaged = f"{self.path} is damaged", "; delete it to start again"
        with refusing(*damaged):
            with zipfile.ZipFile(self.path) as archive:
                state = json.loads(archive.read("training.json"))
            fingerprint, seconds = state["fingerprint"], float(state["seconds"])
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.path} is the checkpoint of a training with other settings or images, or "
                f"by another version: {fingerprint} instead of {self.fingerprint}; delete it to "
                "start again"
            )
        self.seconds = max(self.seconds, seconds)
        self._started = time.perf_counter()
        if (found := state.get("phase", 0)) != phase:
            return 0 if found < phase else None
        with refusing(*damaged):
            model.load_weights(self.path)
            states = state.get("random", [])
            for variable, value in zip(_random_states(model), states, strict=False):
                variable.assign(value)
            self.notes = dict(state.get("notes", {}))
        return int(model.optimizer.iterations)

    def check_finite(self, model: keras.Model, steps: int, learning_rate: float) -> None:
        """ValueError where a weight is not finite after so many steps; then the file goes."""
        for variable in model.variables:
            if not np.isfinite(ops.convert_to_numpy(ops.convert_to_tensor(variable))).all():
                if self.path is not None:
                    self.path.unlink(missing_ok=True)
                raise diverged(f"{variable.path} is not finite after {steps} steps", learning_rate)

    def on_train_batch_end(self, batch, logs=None):
        if self.path is not None and time.perf_counter() - self._saved >= self.every:
            self.save(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.save(self.model)

    def save(self, model):
        """Writes the file, where there is one to write, and brings `seconds` up to now."""
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = self._saved = now
        if self.path is None:
            return
        state = {
            "fingerprint": self.fingerprint,
            "seconds": self.seconds,
            "phase": self.phase,
            "notes": self.notes,
            "random": [ops.convert_to_numpy(each).tolist() for each in _random_states(model)],
        }
        with replacing(self.path) as partial:
            keras.saving.save_model(model, partial)
            with zipfile.ZipFile(partial, "a") as archive:
                archive.writestr("training.json", json.dumps(state))


def _random_states(model):
    """The variables of a model's random generators."""
    return [each for each in model.variables if each.name == "seed_generator_state"]


class TrainingProgress(keras.callbacks.Callback):
    """`progress` over all steps of a training, with the mean of loss and metrics beside it.

    done: the steps that were made before. A log has a line an epoch too. expected_steps says,
    where it is given, how many steps there will be.
    """

    def __init__(
        self,
        description: str,
        steps: int,
        done: int = 0,
        verbose: int = 1,
        expected_steps: Callable[[], int] | None = None,
    ):
        super().__init__()
        self.expected_steps = expected_steps
        self.bar = progress(
            None, description, unit="step", verbose=verbose, total=steps, initial=done
        )

    def on_train_batch_end(self, batch, logs=None):
        # only what is shown is read: reading waits for the device
        if isinstance(self.bar, Lines):
            if self.bar.is_due():
                self._show(logs)
            self.bar.update()
        elif self.bar.update():
            self._show(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._show(logs)
        if isinstance(self.bar, Lines) and not self.bar.disable:
            self.bar.refresh()

    def _show(self, logs):
        if self.expected_steps is not None:
            self.bar.total = self.expected_steps()
        values = {name: f"{float(v):.4g}" for name, v in (logs or {}).items()}
        self.bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()
