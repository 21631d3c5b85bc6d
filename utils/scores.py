"""The normality scores beside Dirichlet's: of section 4.2's last paragraph, and of rotations."""

import numpy as np
from scipy.special import logsumexp


def simplified_score(log_p: np.ndarray, indices: np.ndarray | None = None) -> np.ndarray:
    """The mean over i of y(T_i(x))_i (section 4.2), from log y (n, m, k): float64 (n,).

    indices: the m transformations i that log_p is of; None where it is of all, m = k.
    """
    indices = np.arange(log_p.shape[-1]) if indices is None else indices
    return np.exp(log_p[:, np.arange(len(indices)), indices]).mean(-1)


def rotation_responses(log_p: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Logarithms of the responses (n, m, k) summed over transformations of the same rotation.

    rotations: (k,), of each transformation. Returns (n, m, number of different rotations).
    """
    parts = [logsumexp(log_p[..., rotations == each], axis=-1) for each in np.unique(rotations)]
    return np.stack(parts, axis=-1)
