"""A kernel density of unit vectors: how near an image's features lie to those of normal images."""

import numpy as np
from scipy.special import logsumexp

SHARPNESS = 100.0
"""How narrow a kernel is: the features' total variance over 2 bandwidth^2."""


class UnitDensity:
    """Kernel densities on the unit sphere, one for each of m transformations.

    reference: (n, m, d), the features of n normal images under each transformation, as `kept`.
    gamma (m,): SHARPNESS over their total variance. unit_reference: the reference in float64. The
    kernel is exp(-gamma ||a - b||^2), as Sohn et al. (2021) have it.
    """

    def __init__(self, reference: np.ndarray):
        self.reference = kept(reference)
        spread = self.reference.astype(np.float64).var(axis=0).sum(axis=-1)
        self.gamma = SHARPNESS / np.maximum(spread, 1e-6)
        self.unit_reference = unit(self.reference)  # float16 is a thousandth off length 1

    def score(self, features: np.ndarray, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The mean over transformations of the log-density of features (n, m, d): float64 (n,).

        rows: which of the transformations the features are of. Constants are left out. A kernel
        matrix of these images and all of the reference is made at once.
        """
        x, reference, gamma = unit(features), self.unit_reference[:, rows], self.gamma[rows]
        scores = np.empty(x.shape[:2])
        for j in range(x.shape[1]):
            cosine = x[:, j] @ reference[:, j].T
            scores[:, j] = logsumexp(gamma[j] * (2.0 * cosine - 2.0), axis=1)
        return scores.mean(axis=1) - np.log(len(reference))


def kept(features: np.ndarray) -> np.ndarray:
    """Features at length 1 in float16; in float16 they are so already."""
    return features if features.dtype == np.float16 else unit(features).astype(np.float16)


def unit(features: np.ndarray) -> np.ndarray:
    """Vectors (..., d) at length 1, float64; 0 stays 0."""
    features = np.asarray(features, np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
