"""What every detector shares: scikit-learn's conventions for outlier detectors, on images."""

from abc import ABC, abstractmethod

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin


class Detector(OutlierMixin, BaseEstimator, ABC):
    """An anomaly detector: `fit` on normal images, then `score_samples`, higher = more normal.

    A constructor stores its arguments and does nothing else (get_params, set_params and clone are
    scikit-learn's). `fit` sets attributes that end in an underscore, among them seconds_: the time
    that each part of the work took. found_, where a method has it, is what else a run's file keeps
    of it, as plain values.
    """

    @abstractmethod
    def fit(self, x: np.ndarray, y: None = None) -> "Detector":
        """Train on images x (n, h, w, c) of the normal class, uint8 or float in [-1, 1]."""

    @abstractmethod
    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,), higher = more normal."""

    def score_variants(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """All the scores the method knows, by name, from one pass; the first is its own."""
        return {"own": self.score_samples(x)}

    def get_settings(self) -> dict:
        """The constructor's arguments as plain values, fit for JSON."""
        return self.get_params(deep=False)


def check_images(
    x: np.ndarray, shape: tuple[int, int, int] | None = None, dtype: str | None = None
) -> np.ndarray:
    """x as an array of images (n, h, w, c), uint8, or float32 in [-1, 1].

    shape, dtype: those of training, for images to be scored. Raises ValueError for anything else.
    """
    x = np.asarray(x)
    if x.ndim != 4 or not x.size:
        raise ValueError(f"expected images of shape (n, h, w, c), n > 0, got shape {x.shape}")
    if shape is not None and x.shape[1:] != tuple(shape):
        raise ValueError(
            f"images have shape {x.shape[1:]}, this detector was trained on {tuple(shape)}"
        )
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise ValueError(f"images have dtype {x.dtype}, expected uint8, or float in [-1, 1]")
        if not (np.abs(x) <= 1).all():
            raise ValueError(
                f"float images must lie in [-1, 1], got {x.min()} to {x.max()}; "
                "pass bytes as uint8, or scale them by 2 * (x / 255) - 1"
            )
        x = x.astype(np.float32, copy=False)
    if dtype is not None and x.dtype != dtype:
        raise ValueError(f"images have dtype {x.dtype}, this detector was trained on {dtype}")
    return x


def to_unit_range(x: np.ndarray) -> np.ndarray:
    """Bytes scaled to [-1, 1] (section 5.2) as float32; float images, there already, pass."""
    if x.dtype == np.uint8:
        return np.float32(2) * (x.astype(np.float32) / np.float32(255)) - np.float32(1)
    return x.astype(np.float32, copy=False)
