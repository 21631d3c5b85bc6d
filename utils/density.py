"""A kernel density of unit vectors: how near an image's features lie to those of normal images."""

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

SHARPNESS = 100.0
"""How many times narrower a kernel is than the features are spread: 1 / (2 bandwidth^2) times their
total variance."""

WEIGHTS = (1.0, 0.5)
"""Of the logarithms of the first layer's density and the second's in their sum."""


class UnitDensity:
    """Kernel densities on the unit sphere, one for each layer and each of m transformations.

    reference: (n, m, d), what one layer or two have for n normal images under each transformation.
    widths: how many of the d numbers are of each layer; None: all are of one. A layer's numbers
    become a unit vector, kept in float16; in float16 they are such vectors already. gamma
    (layers, m): SHARPNESS over their total variance. unit_reference: by layer, in float32. The
    kernel is exp(-gamma ||a - b||^2), as Sohn et al. (2021) have it for one layer.
    """

    def __init__(self, reference: np.ndarray, widths: Sequence[int] | None = None):
        self._cuts = np.cumsum(widths or reference.shape[-1:])[:-1]
        made = reference.dtype == np.float16
        kept = reference if made else np.concatenate(self.layers(reference), axis=-1)
        self.reference = kept.astype(np.float16)
        parts = np.split(self.reference, self._cuts, axis=-1)
        spread = [part.astype(np.float64).var(axis=0).sum(axis=-1) for part in parts]
        self.gamma = SHARPNESS / np.maximum(spread, 1e-6)
        self.unit_reference = self.layers(self.reference)  # float16 is a thousandth off length 1

    def layers(self, features: np.ndarray) -> list[np.ndarray]:
        """Features (..., d) by layer, as unit vectors in float32."""
        return [unit(part) for part in np.split(features, self._cuts, axis=-1)]

    def score(self, features: np.ndarray, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The mean over transformations of the log-density of features (n, m, d): float64 (n,).

        That of two layers is the sum by WEIGHTS. rows: which of the transformations the features
        are of. Constants are left out. A kernel matrix of these images and all of the reference is
        made at once.
        """
        total = 0.0
        for weight, reference, gamma, layer in zip(
            WEIGHTS, self.unit_reference, self.gamma, self.layers(features), strict=False
        ):
            total += weight * _log_density(layer, reference[:, rows], gamma[rows])
        return total


def _log_density(x, reference, gamma):
    """The mean over j of the log-density of x (n, m, d) at j, among reference[:, j]."""
    scores = np.empty(x.shape[:2])
    for j in range(x.shape[1]):
        cosine = x[:, j] @ reference[:, j].T
        scores[:, j] = logsumexp(gamma[j] * (2.0 * cosine - 2.0), axis=1)
    return scores.mean(axis=1) - np.log(len(reference))


def unit(features: np.ndarray) -> np.ndarray:
    """Vectors (..., d) at length 1, float32; 0 stays 0."""
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
