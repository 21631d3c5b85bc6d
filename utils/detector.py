"""What every detector shares: scikit-learn's conventions for outlier detectors, on images."""

from abc import ABC, abstractmethod

import numpy as np
from sklearn import exceptions
from sklearn.base import BaseEstimator, OutlierMixin

from utils.threshold import choose_threshold, p_values


class NotFittedError(exceptions.NotFittedError, RuntimeError):
    """Something asked of a detector before `fit`, or before `calibrate` where it needs that."""


class Detector(OutlierMixin, BaseEstimator, ABC):
    """An anomaly detector: `fit` on normal images, then `score_samples`, higher = more normal.

    A constructor stores its arguments and does nothing else (get_params, set_params and clone are
    scikit-learn's). `fit` sets attributes that end in an underscore, among them seconds_: the time
    that each part of the work took. found_, where a method has it, is what else a run's file keeps
    of it, as plain values.

    `fit` leaves open what is an anomaly, as the paper does. `calibrate`, with normal images held
    out from `fit`, chooses the threshold; then there are `decision_function`, `predict` and
    `p_value`, offset_ (the threshold), calibration_scores_ and false_alarm_rate_.
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

    def calibrate(self, x: np.ndarray, false_alarm_rate: float = 0.05) -> "Detector":
        """Choose section 3's threshold on normal images x (n, h, w, c) that were not in `fit`.

        At most the share false_alarm_rate of normal images is to be flagged; how far the true
        share may lie from it is `utils.threshold.false_alarm_interval(n, false_alarm_rate)`.

        Raises ValueError for a rate outside (0, 1) and for fewer images than such a rate needs
        (19 for 0.05), and NotFittedError before `fit`.
        """
        choose_threshold(np.zeros(len(x)), false_alarm_rate)  # before the scoring, which is long
        self.calibration_scores_ = np.sort(self.score_samples(x))
        return self.set_false_alarm_rate(false_alarm_rate)

    def set_false_alarm_rate(self, false_alarm_rate: float) -> "Detector":
        """Choose the threshold anew for another rate. Raises what `calibrate` raises."""
        self._check_calibrated()
        self.offset_ = choose_threshold(self.calibration_scores_, false_alarm_rate)
        self.false_alarm_rate_ = false_alarm_rate
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """`score_samples` minus the threshold: float64 (n,), negative for anomalies.

        Raises NotFittedError before `calibrate`, and what `score_samples` raises.
        """
        self._check_calibrated()
        return self.score_samples(x) - self.offset_

    def predict(self, x: np.ndarray) -> np.ndarray:
        """+1 for normal images and -1 for anomalies: int64 (n,). Raises as decision_function."""
        return np.where(self.decision_function(x) < 0, -1, 1)

    def fit_predict(self, x: np.ndarray, y: None = None) -> np.ndarray:
        """Raises TypeError: the images of `fit` cannot show how often normal images are flagged."""
        raise TypeError(
            "fit_predict would score the very images it learnt: call fit(x), then calibrate with "
            "normal images held out, then predict"
        )

    def p_value(self, x: np.ndarray) -> np.ndarray:
        """The share of the images of `calibrate` that score lower: float64 (n,), low = anomalous.

        Raises NotFittedError before `calibrate`, and what `score_samples` raises.
        """
        self._check_calibrated()
        return p_values(self.calibration_scores_, self.score_samples(x))

    def _check_calibrated(self):
        if not hasattr(self, "calibration_scores_"):
            raise NotFittedError(
                "this detector has no threshold yet: after fit, call calibrate with normal images "
                "that were held out from fit"
            )

    def _forget_calibration(self):
        """For `fit`: a threshold is of the network it was chosen for."""
        for name in ("calibration_scores_", "offset_", "false_alarm_rate_"):
            self.__dict__.pop(name, None)

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
