"""ODIN and the maximum softmax probability, on a classifier of labelled images (section 5.5).

Hendrycks & Gimpel (2017) take a classifier's largest softmax probability as the score. ODIN (Liang
et al., 2018) divides the logits by a temperature and first moves the image a little to where that
probability is larger, which moves images of the training's distribution further than others.
"""

import keras
import numpy as np
from keras import ops

from utils.backend import input_gradient
from utils.batches import predict
from utils.detector import check_images, to_unit_range
from utils.device import use_xla
from utils.settings import number

SCORING_BATCH = 200
"""Images a batch while scoring."""


def odin(
    network: keras.Model,
    x: np.ndarray,
    *,
    temperature: float = 1000.0,
    perturbation: float = 0.0014,
) -> np.ndarray:
    """Scores of images x (n, h, w, c), bytes or float in [-1, 1]: (n,), higher = more normal.

    network: a trained one, from images in [-1, 1] to the logits of two or more classes, in float32.
    With S(x) the largest softmax probability of logits / temperature, the score is log S at
    x + e * sign(gradient of log S at x), which ranks images as S there does. e is perturbation, in
    units of the pixels' whole range, as Liang et al. give it: 0.0014 of it for bytes is 0.36.
    temperature=1, perturbation=0 is the maximum softmax. The defaults are those that Liang et al.
    chose for a DenseNet on CIFAR-10; a perturbation of one's own needs images to choose it by,
    which are not the test images.

    Raises ValueError for a network that computes in less than float32, where a perturbation would
    be rounded away, and for settings and images that make no sense.
    """
    number()("temperature", temperature)
    number(low_too=True)("perturbation", perturbation)
    for layer in network.layers:
        if layer.compute_dtype != "float32":
            raise ValueError(
                f"{layer.name} computes in {layer.compute_dtype}, too coarse for a "
                f"perturbation of {perturbation}: load the weights into a float32 network"
            )
    perturbed = _PerturbedLogits(network, temperature, 2 * perturbation)
    perturbed.jit_compile = use_xla()
    logits = predict(perturbed, check_images(x), SCORING_BATCH, to_unit_range)
    return log_maximum_softmax(logits, temperature)


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
        def log_maximum(x):
            logits = self.network(x, training=False) / self.temperature
            return ops.max(ops.log_softmax(logits, axis=-1), axis=-1)

        if self.step:
            x = x + self.step * ops.sign(input_gradient(log_maximum, x))
        return self.network(x, training=False)
