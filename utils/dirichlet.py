"""Section 4.2: maximum-likelihood Dirichlet parameters, the normality score, and those beside it.

The likelihood of a Dirichlet sample depends on the sample only through the mean of log p, and the
starting point of the estimate on the mean of p as well: two vectors, however large the sample.
"""

import numpy as np
from scipy.special import digamma, logsumexp, polygamma, xlogy

EULER_GAMMA = -digamma(1.0)


def estimate_alpha(mean_p: np.ndarray, mean_log_p: np.ndarray) -> np.ndarray:
    """The Dirichlet parameters alpha of a sample of probability vectors p.

    mean_p, mean_log_p: the sample's mean of p and of log p, (..., k). Leading axes are separate
    problems: (72, 72) estimates alpha_i for every transformation i at once. Returns float64
    (..., k).

    Minka's fixed point alpha <- psi^-1(psi(sum alpha) + mean log p) from the start of Wicker et al.
    (2008); each problem stops when its step has a Euclidean norm under 1e-9, or after 1,000
    iterations. A sample without any spread, whose likelihood grows without bound as alpha does,
    gives large finite values.

    Raises ValueError for shapes that differ, for values that are not finite, and for a mean_p that
    is no probability vector.
    """
    mean_p = np.asarray(mean_p, np.float64)
    mean_log_p = np.asarray(mean_log_p, np.float64)
    if mean_p.shape != mean_log_p.shape or mean_p.ndim < 1 or mean_p.shape[-1] < 2:
        raise ValueError(
            "mean_p and mean_log_p need one shape (..., k) with k >= 2, "
            f"got {mean_p.shape} and {mean_log_p.shape}"
        )
    if not (np.isfinite(mean_p).all() and np.isfinite(mean_log_p).all()):
        raise ValueError("mean_p and mean_log_p must be finite; take log p from a log-softmax")
    if (mean_p < 0).any() or not np.allclose(mean_p.sum(-1), 1.0, atol=1e-4):
        raise ValueError("mean_p must hold probabilities that sum to 1 over the last axis")
    k = mean_p.shape[-1]
    target = mean_log_p.reshape(-1, k)
    alpha = initial_alpha(mean_p, mean_log_p).reshape(-1, k)
    running = np.arange(len(alpha))
    for _ in range(1000):
        old = alpha[running]
        new = inverse_digamma(digamma(old.sum(-1, keepdims=True)) + target[running])
        alpha[running] = new
        running = running[np.linalg.norm(new - old, axis=-1) >= 1e-9]
        if not running.size:
            break
    return alpha.reshape(mean_p.shape)


def initial_alpha(mean_p: np.ndarray, mean_log_p: np.ndarray) -> np.ndarray:
    """The approximate maximum of Wicker et al. (2008), in closed form: mean_p * s, (..., k)."""
    k = mean_p.shape[-1]
    spread = (xlogy(mean_p, mean_p) - mean_p * mean_log_p).sum(-1, keepdims=True)
    # Jensen's inequality makes the spread positive; rounding, or a sample without spread, may not.
    s = (k - 1) * EULER_GAMMA / np.maximum(spread, 1e-10)
    # A share that underflowed to 0 would start, and stay, at a boundary the maximum is not on.
    return np.maximum(mean_p * s, 1e-12)


def inverse_digamma(y: np.ndarray) -> np.ndarray:
    """psi^-1(y) for finite y, by five Newton steps (Minka 2000, appendix C)."""
    x = np.where(y >= -2.22, np.exp(y) + 0.5, -1.0 / (y + EULER_GAMMA))
    for _ in range(5):
        x = x - (digamma(x) - y) / polygamma(1, x)
    return x


def normality_score(alpha: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """n_S of section 4.2: the sum over i of (alpha_i - 1) . log y(T_i(x)); higher is more normal.

    alpha: (k, k), a row for each transformation, and log_p: (n, k, k), the log-softmax responses to
    each transformation of n images; or (k,) and (n, k) for a single transformation. Returns float64
    (n,). The log-densities' constant terms, equal for all images, are left out.

    Raises ValueError for shapes that do not fit and for values that are not finite.
    """
    alpha = np.asarray(alpha, np.float64)
    log_p = np.asarray(log_p, np.float64)
    if log_p.shape[1:] != alpha.shape:
        raise ValueError(
            f"log_p of shape {log_p.shape} does not fit alpha of shape {alpha.shape}: "
            "expected (n, *alpha.shape)"
        )
    if not (np.isfinite(alpha).all() and np.isfinite(log_p).all()):
        raise ValueError("alpha and log_p must be finite; take log p from a log-softmax")
    return (log_p.reshape(len(log_p), alpha.size) * (alpha - 1.0).ravel()).sum(-1)


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
