"""One-class SVMs (section 5.1) on raw pixels and on the code of a convolutional autoencoder.

The paper grants them hindsight: of 90 settings of nu and gamma, the one with the best AUROC on the
test set is reported. Here that takes the test labels by name, `score_in_hindsight(x, normal)`;
`score_samples` never sees them and uses one setting fixed beforehand.

The 90 settings share what they can: squared distances are computed once, a kernel matrix once for
each gamma, and all decision values of a gamma are one matrix product. The solver is scikit-learn's.

scikit-learn's decision value is rounded away where gamma is large (docs/differences.md), so the
ranking by the logarithm of the kernel sum, exact at every gamma, is given beside it.
"""

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from joblib import Parallel, delayed
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.svm import OneClassSVM

from baselines.deep import Autoencoder, DeepBaseline
from models.encoders_decoders import convolutional_decoder, convolutional_encoder
from utils.batches import predict
from utils.detector import Detector, to_unit_range
from utils.metrics import auroc
from utils.progress import progress
from utils.settings import choice, number, optional, setting, several, whole_number
from utils.training import Checkpoint, diverged

NU_GRID = tuple(round(0.1 * i, 1) for i in range(1, 10))
GAMMA_GRID = tuple(2.0**i for i in range(-7, 3))

HINDSIGHT = ("nu", "gamma", "auroc_grid", "nu_exact", "gamma_exact", "auroc_grid_exact")
"""What `score_in_hindsight` learns from the labels."""

SCORING_ROWS = 512
"""Images scored at once: their distances and their kernel take 16 * SCORING_ROWS * n bytes."""

UNDERFLOW = -700.0
"""Exponents are cut off here: below, exp slowly computes subnormal numbers and zeros."""


def _gamma(name, value):
    if isinstance(value, str):
        return choice("scale")(name, value)
    return number()(name, value)


def _nu(name, value):
    if (value := number()(name, value)) > 1:
        raise ValueError(f"{name} is {value!r}, expected a number above 0 and up to 1")
    return value


def _n_jobs(name, value):
    if (value := whole_number(-1)(name, value)) == 0:
        raise ValueError(f"{name} is 0, expected a number of threads, or -1 for one a core")
    return value


@dataclass(eq=False, repr=False, kw_only=True)
class _OneClassSVM(Detector):
    """An RBF one-class SVM on features that a subclass computes.

    nu, gamma: the setting without hindsight; "scale" is scikit-learn's default, 1 / (number of
    features * their variance). nu_grid, gamma_grid: those tried in hindsight. max_train: train the
    SVM on a random so many of the images; None is the paper's rule, all up to 32x32 and LARGE_TRAIN
    of larger ones. n_jobs: solver threads, -1 for one a core.

    Memory: 16 n^2 bytes for distances and kernel, 4 n^2 for each solver thread (at most one a nu),
    and 16 * SCORING_ROWS * n while scoring, for n training images: 0.9 GB for 6,000 on two cores.

    After `fit`: gamma_default_. After `score_in_hindsight`: nu_, gamma_ (the best by decision
    value), nu_exact_, gamma_exact_ (by kernel sum), and the AUROC of every setting, auroc_grid_ and
    auroc_grid_exact_ (nu, gamma). record_ holds all of them.
    """

    LARGE_TRAIN: ClassVar[int]

    nu: float = setting(0.1, _nu)
    gamma: float | str = setting("scale", _gamma)
    nu_grid: tuple[float, ...] = setting(NU_GRID, several(_nu))
    gamma_grid: tuple[float, ...] = setting(GAMMA_GRID, several(number()))
    max_train: int | None = setting(None, optional(whole_number()))
    n_jobs: int = setting(-1, _n_jobs)

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        self._fit_features(x, checkpoint, callbacks)
        start = time.perf_counter()
        large = max(x.shape[1:3]) > 32
        n = min(len(x), self.settings_.max_train or (self.LARGE_TRAIN if large else len(x)))
        if n < len(x):
            rng = np.random.default_rng(self.settings_.seed)
            x = x[np.sort(rng.choice(len(x), n, replace=False))]
        self._train_features_ = self._features(x)
        self._distances_ = euclidean_distances(self._train_features_, squared=True)
        self.gamma_default_ = self.settings_.gamma
        if self.gamma_default_ == "scale":
            variance = self._train_features_.var()
            d = self._train_features_.shape[1]
            self.gamma_default_ = 1 / (d * variance) if variance > 0 else 1.0
        self._default_ = self._solve(self.gamma_default_, [self.settings_.nu])
        self.record_["gamma_default"] = float(self.gamma_default_)
        self.seconds_["training"] = time.perf_counter() - start

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The decision value without hindsight."""
        return {"own": self._decide(x, [self._default_])[0][:, 0]}

    def score_in_hindsight(self, x: np.ndarray, normal: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of images x (n, h, w, c) at the settings that suit their labels best.

        normal: (n,) bool, True for images of the normal class. Returns float64 (n,) scores by name:
        "hindsight", the decision values of the setting whose decision values have the best AUROC,
        as published; "hindsight_exact", the logarithms of the kernel sums of the setting whose sums
        have the best AUROC; "default", those of `score_samples`.

        Raises ValueError for images of another shape or kind than in training and for labels that
        do not fit them, and NotFittedError before `fit`.
        """
        x = self._check_like_training(x)
        normal = np.asarray(normal)
        if normal.shape != (len(x),) or normal.dtype != bool or normal.all() or not normal.any():
            raise ValueError(
                f"normal is {normal.dtype} of shape {normal.shape}, expected bool of shape "
                f"({len(x)},) with both normal images and anomalies"
            )
        start = time.perf_counter()
        nus, gammas = self.settings_.nu_grid, self.settings_.gamma_grid
        gammas = progress(gammas, "one-class SVMs", unit="gamma", verbose=self.verbose)
        machines = [self._solve(gamma, nus) for gamma in gammas]
        self.seconds_["grid"] = time.perf_counter() - start

        start = time.perf_counter()
        decision, log_sum = self._decide(x, [*machines, self._default_])
        chosen, self.nu_, self.gamma_, self.auroc_grid_ = self._choose(decision[:, :-1], normal)
        exact, self.nu_exact_, self.gamma_exact_, self.auroc_grid_exact_ = self._choose(
            log_sum[:, :-1], normal
        )
        for name in HINDSIGHT:
            self.record_[name] = np.round(getattr(self, f"{name}_"), 7).tolist()
        self.seconds_["scoring"] = time.perf_counter() - start
        return {"hindsight": chosen, "hindsight_exact": exact, "default": decision[:, -1]}

    def _fit_features(self, x, checkpoint, callbacks):
        """Trains what `_features` needs on all images x; nothing for pixels."""

    def _features(self, x):
        """Images x (n, h, w, c) as float64 (n, d): float32 would make kernels wrong by percents."""
        raise NotImplementedError

    def _solve(self, gamma, nus):
        """The machines of one gamma: (gamma, dual coefficients (n, nus), offsets (nus,))."""
        kernel = rbf_kernel(self._distances_, gamma)
        solve = Parallel(self.n_jobs, prefer="threads")
        solved = solve(delayed(_dual)(kernel, nu) for nu in nus)
        coefficients, offsets = zip(*solved, strict=True)
        return gamma, np.stack(coefficients, axis=1), np.array(offsets)

    def _decide(self, x, machines):
        """Decision values and logarithms of kernel sums, (2, n, all machines), chunk by chunk.

        Kernels are taken relative to that of the nearest training image, exp(-gamma * (d - d_min)),
        so that sums that underflow still have a logarithm.
        """
        chunks = []
        for start in range(0, len(x), SCORING_ROWS):
            features = self._features(x[start : start + SCORING_ROWS])
            distances = euclidean_distances(features, self._train_features_, squared=True)
            nearest = distances.min(axis=1, keepdims=True)
            distances -= nearest
            columns = []
            for gamma, coefficients, offsets in machines:
                sums = rbf_kernel(distances, gamma) @ coefficients
                decision = np.exp(-gamma * nearest) * sums - offsets
                columns.append([decision, np.log(sums) - gamma * nearest])
            chunks.append(np.concatenate(columns, axis=2))
        return np.concatenate(chunks, axis=1)

    def _choose(self, values, normal):
        """Of values (n, gammas * nus), nu fastest: the best column, its setting, the AUROC grid."""
        grid = np.array([auroc(normal, column) for column in values.T])
        nus, gammas = self.settings_.nu_grid, self.settings_.gamma_grid
        gamma, nu = divmod(int(grid.argmax()), len(nus))
        best = values[:, grid.argmax()]
        return best, nus[nu], gammas[gamma], grid.reshape(len(gammas), len(nus)).T


@dataclass(eq=False, repr=False, kw_only=True)
class RawOCSVM(_OneClassSVM):
    """RAW-OC-SVM (section 5.1): the one-class SVM on pixels scaled to [-1, 1]."""

    LARGE_TRAIN = 5_000

    def _features(self, x):
        return to_unit_range(x).reshape(len(x), -1).astype(np.float64)


@dataclass(eq=False, repr=False, kw_only=True)
class CAEOCSVM(_OneClassSVM, DeepBaseline):
    """CAE-OC-SVM (section 5.1): the one-class SVM on the code of a convolutional autoencoder.

    The autoencoder learns all images of the class, by mean squared error and Adam with
    learning_rate; its tanh code has representation_dim numbers. After `fit`, also encoder_.
    """

    LARGE_TRAIN = 2_500

    representation_dim: int = setting(256, whole_number())

    def _fit_features(self, x, checkpoint, callbacks):
        shape, dtype = self.image_shape_, self.precision_
        code, seed = self.settings_.representation_dim, self.settings_.seed
        self.encoder_ = convolutional_encoder(shape, code, "tanh", seed=seed, dtype=dtype)
        decoder = convolutional_decoder(shape, code, seed=seed + 1, dtype=dtype)
        self._train(Autoencoder(self.encoder_, decoder), x, checkpoint, callbacks)
        self.seconds_["autoencoder"] = checkpoint.seconds

    def _features(self, x):
        codes = predict(self.encoder_, x, SCORING_ROWS, to_unit_range)
        if not np.isfinite(codes).all():
            raise diverged("codes are not finite", self.settings_.learning_rate)
        return codes.astype(np.float64)


def rbf_kernel(distances: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma * squared distances), except that less than e^UNDERFLOW is e^UNDERFLOW."""
    kernel = distances * -gamma
    np.maximum(kernel, UNDERFLOW, out=kernel)
    return np.exp(kernel, out=kernel)


def _dual(kernel, nu):
    """Dual coefficients (n,) and the offset of scikit-learn's one-class SVM of a kernel (n, n)."""
    cache_mb = 1 + 4 * kernel.size / 2**20  # the solver's float32 copy of the kernel, whole
    machine = OneClassSVM(kernel="precomputed", nu=nu, cache_size=cache_mb).fit(kernel)
    coefficients = np.zeros(len(kernel))
    coefficients[machine.support_] = machine.dual_coef_[0]
    return coefficients, machine.offset_[0]
