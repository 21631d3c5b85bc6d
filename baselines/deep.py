"""What the deep baselines share: one interface, one training loop and its progress."""

import math
import time
from abc import abstractmethod

import keras
import numpy as np
from keras import ops
from tqdm.auto import tqdm

from utils.batches import batches, predict
from utils.detector import Detector, NotFittedError, check_images, to_unit_range

SCORING_BATCH = 512
"""Images a batch while scoring."""


class DeepBaseline(Detector):
    """A detector whose subclass says how to train its network and how to score with it.

    epochs, which may be a fraction, batch_size, seed and verbose are arguments of every subclass.
    The same seed gives the same initial weights and the same order of images. After `fit`:
    image_shape_, image_dtype_, network_ (what scores) and seconds_.
    """

    def fit(self, x: np.ndarray, y: None = None) -> "DeepBaseline":
        """Train on images x (n, h, w, c) of the normal class, uint8 or float in [-1, 1].

        Raises ValueError for images or settings that make no sense, and where training diverges.
        """
        x = check_images(x)
        check_training(self)
        self._forget_calibration()
        self.image_shape_, self.image_dtype_ = x.shape[1:], x.dtype.name
        start = time.perf_counter()
        self.network_ = self._train(x)
        self.seconds_ = {"training": time.perf_counter() - start}
        return self

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,), higher = more normal.

        Raises ValueError for images of another shape or kind than in training, and NotFittedError
        before `fit`.
        """
        if not hasattr(self, "network_"):
            raise NotFittedError("this detector is not trained yet: call fit")
        x = check_images(x, self.image_shape_, self.image_dtype_)
        start = time.perf_counter()
        scores = np.asarray(self._score(x), np.float64)
        self.seconds_["scoring"] = time.perf_counter() - start
        return scores

    @abstractmethod
    def _train(self, x: np.ndarray) -> keras.Model:
        """The trained network of checked images."""

    @abstractmethod
    def _score(self, x: np.ndarray) -> np.ndarray:
        """The scores (n,) of checked images."""

    def _fit_network(self, model, x, batch_indices, description, targets=False):
        fit_network(
            model,
            x,
            batch_indices,
            description,
            targets=targets,
            learning_rate=self.learning_rate,
            verbose=self.verbose,
        )

    def _predict(self, model, x, batch_size=SCORING_BATCH, description=None):
        """A compiled model's output for all images x, with a progress bar where described."""
        steps = math.ceil(len(x) / batch_size)
        bar = [_Progress(description, steps)] if description and self.verbose else []
        return predict(model, x, batch_size, to_unit_range, bar)


def check_training(detector: Detector) -> None:
    """ValueError where a detector's epochs or batch_size are no numbers above 0."""
    for name in ("epochs", "batch_size"):
        if not 0 < getattr(detector, name) < math.inf:
            raise ValueError(f"{name} is {getattr(detector, name)}, expected a number above 0")


def fit_network(
    model: keras.Model,
    x: np.ndarray,
    batch_indices: list[np.ndarray],
    description: str,
    *,
    learning_rate: float,
    targets: bool = False,
    verbose: int = 1,
) -> None:
    """Train a compiled model on batches of images x (n, h, w, c), scaled to [-1, 1].

    batch_indices: which images make each batch. targets: the images are what the model is to give.

    Raises ValueError where a weight is not finite afterwards; learning_rate is for that message.
    """

    def make(index):
        images = to_unit_range(x[batch_indices[index]])
        return (images, images) if targets else (images,)

    model.fit(
        batches(len(batch_indices), make),
        shuffle=False,
        verbose=0,
        callbacks=[_Progress(description, len(batch_indices))] if verbose else [],
    )
    for variable in model.variables:
        if not np.isfinite(ops.convert_to_numpy(ops.convert_to_tensor(variable))).all():
            raise ValueError(
                f"training diverged: {variable.path} is not finite after {len(batch_indices)} "
                f"steps; lower learning_rate, now {learning_rate:g}"
            )


class _Progress(keras.callbacks.Callback):
    """A progress bar over all steps; the loss beside it is the mean since the start."""

    def __init__(self, description, steps):
        super().__init__()
        self.bar = tqdm(desc=description, total=steps, unit="step", mininterval=1)

    def on_train_batch_end(self, batch, logs=None):
        if self.bar.update():
            self.bar.set_postfix(
                {name: f"{float(v):.4g}" for name, v in logs.items()}, refresh=False
            )

    def on_predict_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()

    on_predict_end = on_train_end
