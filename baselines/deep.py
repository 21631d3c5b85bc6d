"""What the deep baselines share: one interface, one training loop and its progress."""

import math
import time
from abc import abstractmethod
from dataclasses import dataclass

import keras
import numpy as np

from utils.batches import batches, predict
from utils.detector import Detector, to_unit_range
from utils.settings import number, setting, whole_number
from utils.training import Checkpoint, TrainingProgress, check_finite

SCORING_BATCH = 512
"""Images a batch while scoring."""


@dataclass(eq=False, repr=False, kw_only=True)
class DeepBaseline(Detector):
    """A detector whose subclass says how to train its network and how to score with it.

    epochs, which may be a fraction, batch_size and learning_rate are settings of every subclass.
    After `fit`: network_, which scores.
    """

    epochs: float = setting(200, number())
    batch_size: int = setting(128, whole_number())
    learning_rate: float = setting(1e-3, number())

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        start = time.perf_counter()
        self.network_ = self._train(x)
        self.seconds_["training"] = time.perf_counter() - start

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"own": np.asarray(self._score(x), np.float64)}

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
            learning_rate=self.settings_.learning_rate,
            verbose=self.verbose,
        )

    def _predict(self, model, x, batch_size=SCORING_BATCH, description=None):
        """A compiled model's output for all images x, with a progress bar where described."""
        shown = self.verbose and description is not None
        bar = TrainingProgress(description, math.ceil(len(x) / batch_size), verbose=shown)
        outputs = predict(model, x, batch_size, to_unit_range, [bar])
        bar.close()
        return outputs


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

    progress = TrainingProgress(description, len(batch_indices), verbose=verbose)
    model.fit(batches(len(batch_indices), make), shuffle=False, verbose=0, callbacks=[progress])
    progress.close()
    check_finite(model, len(batch_indices), learning_rate)
