"""ODIN and the maximum softmax probability, on a classifier of labelled images (section 5.5).

Hendrycks & Gimpel (2017) take a classifier's largest softmax probability as the score. ODIN (Liang
et al., 2018) divides the logits by a temperature and first moves the image a little to where that
probability is larger, which moves images of the training's distribution further than others.
"""

import time

import keras
import numpy as np
from keras import ops

from utils.backend import input_gradient, use_xla
from utils.batches import predict
from utils.detector import Detector, NotFittedError, check_images, to_unit_range

SCORING_BATCH = 200
"""Images a batch while scoring."""


class ODIN(Detector):
    """Scores by a trained classifier; temperature=1, perturbation=0 is the maximum softmax.

    network: from images (n, h, w, c) in [-1, 1] to the logits of two or more classes, in float32.
    With S(x) the largest softmax probability of logits / temperature, the score is log S at
    x + e * sign(gradient of log S at x), which ranks images as S there does. e is perturbation, in
    units of the pixels' whole range, as Liang et al. give it: 0.0014 of it for bytes is 0.36.

    The defaults are those that Liang et al. chose for a DenseNet on CIFAR-10; a perturbation of
    one's own needs images to choose it by, which are not the test images. `fit` trains nothing.
    """

    def __init__(
        self, network: keras.Model, *, temperature: float = 1000.0, perturbation: float = 0.0014
    ):
        self.network = network
        self.temperature = temperature
        self.perturbation = perturbation

    def fit(self, x: np.ndarray, y: None = None) -> "ODIN":
        """Take images x (n, h, w, c), uint8 or float in [-1, 1], for what shall be scored.

        Raises ValueError for images or settings that make no sense, and for a network that computes
        in less than float32, where a perturbation would be rounded away.
        """
        x = check_images(x)
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}, expected a number above 0")
        if not 0 <= self.perturbation < np.inf:
            raise ValueError(f"perturbation is {self.perturbation}, expected 0 or above")
        for layer in self.network.layers:
            if layer.compute_dtype != "float32":
                raise ValueError(
                    f"{layer.name} computes in {layer.compute_dtype}, too coarse for a "
                    f"perturbation of {self.perturbation}: load the weights into a float32 network"
                )
        self._forget_calibration()
        self.image_shape_, self.image_dtype_ = x.shape[1:], x.dtype.name
        self._perturbed = _PerturbedLogits(self.network, self.temperature, 2 * self.perturbation)
        self._perturbed.compile(jit_compile=use_xla())
        self.seconds_ = {}
        return self

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,), higher = more normal.

        Raises ValueError for images of another shape or kind than in `fit`, and NotFittedError
        before it.
        """
        if not hasattr(self, "_perturbed"):
            raise NotFittedError("this detector knows no images yet: call fit")
        x = to_unit_range(check_images(x, self.image_shape_, self.image_dtype_))
        start = time.perf_counter()
        logits = predict(self._perturbed, x, SCORING_BATCH)
        self.seconds_["scoring"] = time.perf_counter() - start
        return log_maximum_softmax(logits, self.temperature)

    def get_settings(self) -> dict:
        """The constructor's arguments as plain values, the network by its name."""
        return super().get_settings() | {"network": self.network.name}


def log_maximum_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log max softmax(logits / temperature): (n, classes) to float64 (n,), exact near log 1 too."""
    scaled = np.sort(np.asarray(logits, np.float64) / temperature, axis=1)
    return -np.log1p(np.exp(scaled[:, :-1] - scaled[:, -1:]).sum(axis=1))


class _PerturbedLogits(keras.Model):
    """The logits of images moved by step * sign(gradient of the log of the maximum softmax)."""

    def __init__(self, network, temperature, step):
        super().__init__(name="odin")
        self.network, self.temperature, self.step = network, temperature, step
        self.built = True

    def call(self, x):
        if self.step:
            x = x + self.step * ops.sign(input_gradient(self._log_maximum_softmax, x))
        return self.network(x, training=False)

    def _log_maximum_softmax(self, x):
        logits = self.network(x, training=False) / self.temperature
        return ops.max(ops.log_softmax(logits, axis=-1), axis=-1)
