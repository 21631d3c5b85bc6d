"""What every detector shares: scikit-learn's conventions for outlier detectors, on images."""

import dataclasses
import json
import os
import time
import warnings
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import keras
import numpy as np
from sklearn import exceptions
from sklearn.base import BaseEstimator, OutlierMixin

from utils.backend import backend, keras_defaults
from utils.device import resolve_precision
from utils.settings import SEED, setting, whole_number
from utils.threshold import choose_threshold, p_values
from utils.training import Checkpoint


class NotFittedError(exceptions.NotFittedError, RuntimeError):
    """Something asked of a detector before `fit`, or before `calibrate` where it needs that."""


@dataclass(eq=False, repr=False, kw_only=True)
class Detector(OutlierMixin, BaseEstimator, ABC):
    """An anomaly detector: `fit` on normal images, then `score_samples`, higher = more normal.

    A subclass is a dataclass whose fields are its hyperparameters, each a `setting`, and has `_fit`
    and `_scores`. The constructor does nothing but store them (get_params, set_params and clone are
    scikit-learn's). The same seed gives the same initial weights and the same order of images; None
    draws one, which settings_ has. verbose: 0 shows no progress.

    max_test: experiments score a random subset of so many test images, None all. NOT_OF_TRAINING:
    settings that a training does not depend on.

    After `fit`: image_shape_, image_dtype_, settings_ (the hyperparameters as plain values),
    precision_ (of the convolutions), seconds_ (the time that each part of the work took) and
    record_, what else a run's file keeps, as plain values. A fit that fails or is stopped, once
    images and settings are accepted, leaves the detector unfitted.

    `fit` leaves open what is an anomaly, as the paper does. `calibrate`, with normal images held
    out from `fit`, chooses the threshold; then there are `predict` and `p_value`, offset_ (the
    threshold), calibration_scores_ and false_alarm_rate_.
    """

    max_test: ClassVar[int | None] = None
    NOT_OF_TRAINING: ClassVar = frozenset({"verbose"})

    seed: int | None = setting(0, SEED)
    verbose: int = setting(1, whole_number(0))

    def fit(
        self,
        x: np.ndarray,
        y: None = None,
        *,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_seconds: float = 180.0,
        callbacks: list[keras.callbacks.Callback] = (),
    ) -> "Detector":
        """Train on images x (n, h, w, c) of the normal class, uint8 or float in [-1, 1].

        checkpoint: a file that holds the training's state, written anew every checkpoint_seconds
        and after each epoch; where it exists, training goes on from there, on the batches that it
        would have seen. It is left for the caller to remove. callbacks: of Keras, for the training.

        Raises ValueError for images or settings that make no sense, before any work, for the
        checkpoint of other settings or images, and where training diverges.
        """
        x = check_images(x)
        if checkpoint is not None and self.seed is None:
            raise ValueError("seed=None draws another seed each time: a checkpoint needs a number")
        if x.dtype != np.uint8 and x.min() >= 0 < x.max():
            warnings.warn(
                f"all pixels lie in {x.min():.3g} to {x.max():.3g}, half of the range [-1, 1] that "
                "float images have here: if they are bytes / 255, pass 2 * x - 1, or the bytes",
                stacklevel=2,
            )
        self._begin(x.shape[1:], x.dtype.name)
        start = time.perf_counter()
        try:
            state = Checkpoint(checkpoint, checkpoint_seconds, self._fingerprint(x))
            with keras_defaults():
                self._fit(x, state, callbacks)
            self.seconds_.setdefault("training", state.seconds or time.perf_counter() - start)
        except BaseException:
            self._unfit()
            raise
        return self

    @abstractmethod
    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        """`fit` on checked images, with settings_; seconds_ may have the time of its parts."""

    @abstractmethod
    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """`scores` of checked images."""

    def scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """All the normality scores the method knows, by name, from one pass over x (n, h, w, c).

        float64 (n,), higher = more normal; the first is the method's own, that of `score_samples`.

        Raises ValueError for images of another shape or kind than in training, and NotFittedError
        before `fit`.
        """
        x = self._check_like_training(x)
        start = time.perf_counter()
        with keras_defaults():
            scores = self._scores(x)
        self.seconds_["scoring"] = time.perf_counter() - start
        return scores

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,). Raises as `scores`."""
        return next(iter(self.scores(x).values()))

    def calibrate(self, x: np.ndarray, false_alarm_rate: float = 0.05) -> "Detector":
        """Choose section 3's threshold on normal images x (n, h, w, c) that were not in `fit`.

        At most the share false_alarm_rate of normal images is to be flagged; how far the true
        share may lie from it is `utils.threshold.false_alarm_interval(n, false_alarm_rate)`.

        Raises ValueError for a rate outside (0, 1) and for fewer images than such a rate needs
        (19 for 0.05), and NotFittedError before `fit`.
        """
        choose_threshold(np.zeros(len(x)), false_alarm_rate)  # before the scoring, which is long
        return self.calibrate_by(self.score_samples(x), false_alarm_rate)

    def calibrate_by(self, scores: np.ndarray, false_alarm_rate: float) -> "Detector":
        """The same by the scores (n,) of such images."""
        self.calibration_scores_ = np.sort(scores)
        return self.set_false_alarm_rate(false_alarm_rate)

    def set_false_alarm_rate(self, false_alarm_rate: float) -> "Detector":
        """Choose the threshold anew for another rate. Raises what `calibrate` raises."""
        self._check_calibrated()
        self.offset_ = choose_threshold(self.calibration_scores_, false_alarm_rate)
        self.false_alarm_rate_ = float(false_alarm_rate)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """`score_samples` minus the threshold: float64 (n,), negative for anomalies.

        Before `calibrate` there is no threshold and it is `score_samples`, which ranks images just
        as well: all that scikit-learn's "roc_auc" needs. Raises as `scores`.
        """
        return self.score_samples(x) - getattr(self, "offset_", 0.0)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """+1 for normal images and -1 for anomalies: int64 (n,).

        Raises NotFittedError before `calibrate`, and what `scores` raises.
        """
        self._check_calibrated()
        return np.where(self.decision_function(x) < 0, -1, 1)

    def fit_predict(self, x: np.ndarray, y: None = None) -> np.ndarray:
        """Raises TypeError: the images of `fit` cannot show how often normal images are flagged."""
        raise TypeError(
            "fit_predict would score the very images it learnt: call fit(x), then calibrate with "
            "normal images held out, then predict"
        )

    def p_value(self, x: np.ndarray) -> np.ndarray:
        """(1 + images of `calibrate` that score as low) / (1 + their number): float64 (n,), not 0.

        `predict` gives -1 where it is at most false_alarm_rate_. Raises NotFittedError before
        `calibrate`, and what `scores` raises.
        """
        self._check_calibrated()
        return p_values(self.calibration_scores_, self.score_samples(x))

    def get_settings(self) -> dict:
        """The constructor's arguments as plain values, fit for JSON: those of `fit` after it."""
        fitted = self.__sklearn_is_fitted__()
        return dict(vars(self.settings_)) if fitted else self.check_settings()

    def __sklearn_is_fitted__(self) -> bool:
        """Whether a `fit` was finished, or a saved detector loaded."""
        return "seconds_" in vars(self)

    def check_settings(self) -> dict:
        """The hyperparameters as plain values; ValueError where one makes no sense."""
        settings = {
            field.name: field.metadata["check"](field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        if settings["seed"] is None:
            settings["seed"] = int(np.random.SeedSequence().generate_state(1)[0] // 2)
        return settings

    def _begin(self, image_shape, image_dtype):
        """Forgets what was learnt; sets what is known before the work. ValueError as `fit`."""
        settings = self.check_settings()
        self._unfit()
        self.settings_ = SimpleNamespace(**settings)
        self.image_shape_, self.image_dtype_ = tuple(image_shape), image_dtype
        self.precision_ = resolve_precision(settings.get("precision", "float32"))
        self.seconds_, self.record_ = {}, {}

    def _fingerprint(self, x):
        """What a checkpoint must share with the run that goes on from it."""
        settings = self.get_settings() | {"precision": self.precision_, "backend": backend()}
        settings = {k: v for k, v in settings.items() if k not in self.NOT_OF_TRAINING}
        images = {"images": x.shape, "crc32": zlib.crc32(np.ascontiguousarray(x))}
        return json.dumps(settings | images, sort_keys=True)

    def _unfit(self):
        """Forgets what was learnt: the attributes that end in an underscore."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _check_like_training(self, x):
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this detector is not trained yet: call fit, or load a saved one")
        return check_images(x, self.image_shape_, self.image_dtype_)

    def _check_calibrated(self):
        if not hasattr(self, "calibration_scores_"):
            raise NotFittedError(
                "this detector has no threshold yet: after fit, call calibrate with normal images "
                "that were held out from fit"
            )


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
        if np.isnan(x).any():
            raise ValueError(f"{np.isnan(x).any((1, 2, 3)).sum()} of {len(x)} images hold NaN")
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
