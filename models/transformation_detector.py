"""The paper's method (section 4): tell transformations apart, then score the softmax responses."""

import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from models.anomaly_map import anomaly_map
from models.augmentation import random_views
from models.model_file import check_model_path, read_model, write_model
from models.pace import Pace
from models.responses import compile_trainer, create_responder, create_trainer
from models.wide_residual_network import create_wide_residual_network
from transformations import Rotations, SimpleTransformer, TransformationSet, Transformer
from utils.backend import backend, keras_defaults
from utils.batches import epoch_pairs, pair_batches, predictions
from utils.density import UnitDensity, kept
from utils.detector import Detector, NotFittedError
from utils.device import PRECISIONS, device_name, scoring_batch, versions
from utils.dirichlet import estimate_alpha, normality_score, rotation_responses, simplified_score
from utils.optimizers import Adam, Muon, one_cycle
from utils.settings import choice, number, optional, setting, whole_number
from utils.training import Checkpoint, diverged, fit_steps

SCORES = ("dirichlet", "simplified", "rotation", "density")
MAX_ACTIVATIONS = 2**30
"""A layer's numbers while an image is scored, over which that is refused: 4 GiB in float32. The
paper's network has a thirtieth of it at 64x64, and over half at 256x256."""

OPTIMIZERS = {"adam": Adam, "muon": Muon}
FIXED_SETS = {"simple": SimpleTransformer, "rotations": Rotations}


def _transformations(name, value):
    if not isinstance(value, TransformationSet):
        return choice("full", *FIXED_SETS)(name, value)
    if len(value) < 2:
        raise ValueError(f"{name} has one alone, with nothing to be told from: give two or more")
    return value


@dataclass(eq=False, repr=False, kw_only=True)
class TransformationDetector(Detector):
    """Anomaly detection by geometric transformations.

    transformations: "full" (72), "simple" (8), "rotations" (4) or a `TransformationSet`. None is
    the paper's value at the images' size:

    - translation, of the full set: a quarter of the side, 8 pixels at 32x32 and 16 at 64x64;
    - depth, widen_factor: 10, 4 up to 32x32 and 16, 8 above;
    - epochs over the |T| * n transformed images: 200 / |T|, rounded up. It may be a fraction.

    samples: instead of epochs, how many transformed images training sees, whatever n is. optimizer:
    "adam", or "muon", see `utils.optimizers.Muon`, with learning_rate, "constant", "one_cycle", see
    `utils.optimizers.one_cycle`, or "paced", by a callback `models.pace.Pace`. augmentation:
    "views" shows the network a random view of each image (`models.augmentation`), transformed.
    hidden_layers, of the head, and weight_decay: see `create_wide_residual_network`. precision:
    "float32", "mixed_bfloat16", or "auto", see `utils.device.resolve_precision`. The same seed
    gives the same order of pairs and the same views on any backend.

    score_name: "dirichlet" (section 4.2), "simplified" (its last paragraph) or "rotation", which is
    not the paper's: the Dirichlet score of the rotation alone, from responses summed over flips and
    shifts. Sums of a Dirichlet vector's components are a Dirichlet vector too. Most of the 72
    components are nearly 0, and their logarithms decide the paper's score; of the sums there are
    four. "density" is that of the network's features under each transformation (`utils.density`).
    scored_transformations: those under which an image is scored, "all", or "unflipped", half as
    many. alpha_images: alpha and density are estimated from a random so many of the training
    images, None from all of them.

    After `fit`, for m scored of k transformations: network_ (images to logits), transformer_,
    scored_indices_ (m,), alpha_ (m, k) float64, rotation_alpha_ (m, rotations), density_,
    precision_, record_ (how many transformed images training saw), seconds_, the time of training,
    of estimating alpha and of the last scoring, and details_: on how many images, with what.
    Pickles and copies are made by `save` and `load`.
    """

    NOT_OF_TRAINING: ClassVar = Detector.NOT_OF_TRAINING | {
        "score_name",
        "scored_transformations",
        "alpha_images",
    }

    transformations: str | TransformationSet = setting("full", _transformations, kw_only=False)
    score_name: str = setting("dirichlet", choice(*SCORES))
    scored_transformations: str = setting("all", choice("all", "unflipped"))
    alpha_images: int | None = setting(None, optional(whole_number()))
    translation: int | None = setting(None, optional(whole_number()))
    depth: int | None = setting(None, optional(whole_number()))
    widen_factor: int | None = setting(None, optional(whole_number()))
    hidden_layers: int = setting(0, whole_number(0))
    dropout_rate: float = setting(0.0, number(below=1.0, low_too=True))
    epochs: float | None = setting(None, optional(number()))
    samples: int | None = setting(None, optional(whole_number()))
    batch_size: int = setting(128, whole_number())
    optimizer: str = setting("adam", choice(*OPTIMIZERS))
    learning_rate: float = setting(1e-3, number())
    augmentation: str = setting("none", choice("none", "views"))
    schedule: str = setting("constant", choice("constant", "one_cycle", "paced"))
    weight_decay: float = setting(5e-4, number(low_too=True))
    precision: str = setting("auto", choice(*PRECISIONS))

    # ------------------------------------------------------------------------------------ training

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        self._build()
        if (x == x[0]).all():
            message = "all training images are the same: the scores will mean nothing"
            warnings.warn(message, stacklevel=3)
        self.details_ = {
            "images": len(x),
            "mean_image": np.round(x.mean(axis=0), 0 if x.dtype == np.uint8 else 4).tolist(),
            "backend": backend(),
            "device": device_name(),
            "versions": ", ".join(f"{name} {each}" for name, each in versions().items()),
        }
        self._train(x, checkpoint, callbacks)
        self.seconds_["training"] = checkpoint.seconds
        start = time.perf_counter()
        self._estimate_alpha(x)
        self.seconds_["alpha"] = time.perf_counter() - start

    @keras_defaults()
    def _build(self):
        """The untrained network and the models that feed it: to train, to score, to explain."""
        settings = self.settings_
        self.transformer_ = self._resolve_transformations()
        self._images_at_once(self.transformer_.n_transforms)  # refuses what memories cannot hold
        self.network_ = self._create_network()
        kind = self.image_shape_, self.image_dtype_
        self._trainer_ = create_trainer(self.network_, self.transformer_, *kind)

        self._rotations_ = np.array([each.k for each in self.transformer_.transformations])
        self._has_rotations_ = len(set(self._rotations_)) > 1
        if settings.score_name == "rotation" and not self._has_rotations_:
            raise ValueError(
                "score_name 'rotation' needs transformations with different rotations; choose "
                "another score, or other transformations"
            )
        flips = np.array([each.flip for each in self.transformer_.transformations])
        self.scored_indices_ = np.flatnonzero(
            (settings.scored_transformations == "all") | ~flips.astype(bool)
        )
        self._responder_ = self._create_responder(self.scored_indices_)

    def _create_network(self):
        """From images in [-1, 1] to a logit for each transformation."""
        settings, (depth, widen_factor) = self.settings_, self._architecture()
        return create_wide_residual_network(
            self.image_shape_,
            self.transformer_.n_transforms,
            depth=depth,
            widen_factor=widen_factor,
            dropout_rate=settings.dropout_rate,
            hidden_layers=settings.hidden_layers,
            final_activation=None,
            weight_decay=settings.weight_decay,
            seed=settings.seed,
            dtype=self.precision_,
        )

    def _resolve_transformations(self):
        chosen, translation = self.settings_.transformations, self.settings_.translation
        if chosen == "full":
            translation = translation or min(self.image_shape_[:2]) // 4
            return Transformer(translation, translation)
        return chosen if isinstance(chosen, TransformationSet) else FIXED_SETS[chosen]()

    def _architecture(self):
        """Depth and widen factor."""
        large = max(self.image_shape_[:2]) > 32
        depth, widen_factor = self.settings_.depth, self.settings_.widen_factor
        return depth or (16 if large else 10), widen_factor or (8 if large else 4)

    def _images_at_once(self, m):
        """How many images are scored at once under m transformations, whose layers fit memories."""
        height, width, channels = self.image_shape_
        numbers = m * height * width * max(16 * self._architecture()[1], channels)
        if numbers > MAX_ACTIVATIONS:
            raise ValueError(
                f"images {self.image_shape_} under {m} transformations would exhaust memory: "
                "resize them, or choose fewer transformations or a smaller widen_factor"
            )
        return max(1, min(scoring_batch() // m, MAX_ACTIVATIONS // numbers))

    def _create_responder(self, indices):
        """The model from images to log y(T_i(x)) for the transformations i of some indices."""
        shape = self._images_at_once(len(indices)), *self.image_shape_
        how = self.network_, self.transformer_, shape, self.image_dtype_
        return create_responder(*how, indices, features=self.settings_.score_name == "density")

    def _train(self, x, checkpoint, callbacks):
        k, settings = self.transformer_.n_transforms, self.settings_
        pace = next((each for each in callbacks if isinstance(each, Pace)), None)
        if settings.schedule == "paced" and pace is None:
            raise ValueError("schedule 'paced' needs models.pace.Pace as a callback of fit")
        steps_per_epoch = math.ceil(len(x) * k / settings.batch_size)
        total_steps = max(1, round(self._epochs(len(x)) * steps_per_epoch))
        if pace is not None:
            pace.begin(self, len(x), total_steps, checkpoint)
        rate, schedule = settings.learning_rate, settings.schedule
        rate = one_cycle(rate, total_steps) if schedule == "one_cycle" else rate
        compile_trainer(self._trainer_, OPTIMIZERS[settings.optimizer](rate))

        def make(epoch):
            def views(index, images):
                return random_views(images, np.random.default_rng((settings.seed, epoch, index)))

            augment = {"augment": views} if settings.augmentation == "views" else {}
            pairs = epoch_pairs(len(x), k, settings.seed, epoch)
            return pair_batches(x, pairs, k, settings.batch_size, **augment)

        fit_steps(
            self._trainer_,
            make,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            checkpoint=checkpoint,
            learning_rate=settings.learning_rate,
            callbacks=callbacks,
            expected_steps=pace and pace.expected_steps,
            verbose=self.verbose,
        )
        made = int(self._trainer_.optimizer.iterations) / total_steps  # a callback may end it early
        self.details_["epochs"] = round(made * self._epochs(len(x)), 2)
        self.record_["training_samples"] = round(made * self.training_samples(len(x)))

    def _epochs(self, n):
        k, settings = self.transformer_.n_transforms, self.settings_
        if settings.epochs is not None:
            return settings.epochs
        return math.ceil(200 / k) if settings.samples is None else settings.samples / (n * k)

    def training_samples(self, n: int) -> int:
        """How many transformed images training on n images sees."""
        return round(self._epochs(n) * n * self.transformer_.n_transforms)

    def scoring_passes(self, n: int, n_scored: int) -> int:
        """How many forward passes alpha takes after training on n images, and n_scored images."""
        alpha_images = min(n, self.settings_.alpha_images or n)
        return (alpha_images + n_scored) * len(self.scored_indices_)

    def _estimate_alpha(self, x):
        """Section 4.2's alpha_i of every scored transformation, from running sums (m, k)."""
        n = min(len(x), self.settings_.alpha_images or len(x))
        if n < len(x):
            chosen = np.random.default_rng(self.settings_.seed).choice(len(x), n, replace=False)
            x = x[np.sort(chosen)]
        sums, rotation_sums, features = 0.0, 0.0, []
        for _, log_p, read in self._responses(x, "estimating alpha"):
            sums += _sums(log_p)
            if read is not None:
                features.append(kept(read))
            if self._has_rotations_:
                rotation_sums += _sums(rotation_responses(log_p, self._rotations_))
        if not np.isfinite(sums).all():
            what = "the network's responses to its training images are not finite"
            raise diverged(what, self.settings_.learning_rate)
        self.alpha_ = estimate_alpha(*sums / n)
        if self._has_rotations_:
            self.rotation_alpha_ = estimate_alpha(*rotation_sums / n)
        if self.settings_.score_name == "density":
            self.density_ = UnitDensity(np.concatenate(features))

    # ------------------------------------------------------------------------------------- scoring

    def _scores(self, x, description="scoring", responder=None, rows=slice(None)):
        """The rotation score is among them where the transformations have different rotations.

        rows: which of the scored transformations another responder has.
        """
        own, parts = self.settings_.score_name, []
        for _, log_p, features in self._responses(x, description, responder):
            scores = {
                "dirichlet": normality_score(self.alpha_[rows], log_p),
                "simplified": simplified_score(log_p, self.scored_indices_[rows]),
            }
            if self._has_rotations_:
                rotations = rotation_responses(log_p, self._rotations_)
                scores["rotation"] = normality_score(self.rotation_alpha_[rows], rotations)
            if own == "density":
                scores["density"] = self.density_.score(features, rows)
            parts.append({own: scores.pop(own)} | scores)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def responses(self, x: np.ndarray) -> np.ndarray:
        """The softmax responses y(T_i(x)) to every transformation: float32 (n, k, k).

        Row i holds the probabilities of each transformation to be what was done, where T_i was.
        Raises as `scores`.
        """
        x = self._check_like_training(x)
        k = self.transformer_.n_transforms
        whole = len(self.scored_indices_) == k
        responder = self._responder_ if whole else self._create_responder(np.arange(k))
        parts = self._responses(x, "explaining", responder)
        return np.concatenate([np.exp(log_p).astype("f4") for _, log_p, _ in parts])

    def log_responses(self, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (part, log y(T_i(x[part]))), from which all scores are computed, batch by batch.

        part: a slice of x. The logarithms are float64 (len(part), m, k), for the m scored of the k
        transformations. Raises as `scores`.
        """
        for part, log_p, _ in self._responses(self._check_like_training(x), "responses"):
            yield part, log_p

    def _responses(self, x, description, responder=None):
        """Yields (slice of x, log y (n, m, k), features (n, m, d) or None), in float64."""
        responder = responder or self._responder_
        how = {"description": description, "verbose": self.verbose}
        for part, outputs in predictions(responder, x, responder.input_shape[0], **how):
            outputs = {name: values.astype(np.float64) for name, values in outputs.items()}
            yield part, outputs["log_p"], outputs.get("features")

    def anomaly_map(self, x: np.ndarray) -> np.ndarray:
        """Where images x (n, h, w, c) are odd, the higher the more: see `models.anomaly_map`.

        float64 (n, h, w). Raises as `scores`.
        """
        return anomaly_map(self, self._check_like_training(x))

    # ---------------------------------------------------------------------------- saving, settings

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, alpha, threshold and settings to one file: a Keras archive and one more.

        `load` gives a detector with equal scores, bit for bit on the same device and backend.
        Raises ValueError where path does not end in .keras, and NotFittedError before `fit`.
        """
        path = check_model_path(path)
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this detector is not trained yet: call fit before save")
        write_model(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike, *, precision: str | None = None):
        """The detector that `save` wrote; on another backend its scores agree within rounding.

        The file may come from a stranger: `models.model_file` says what reading it never does.
        precision: None keeps the one that the detector was trained with.

        Raises ValueError where the file is not a saved detector, OSError where it cannot be read.
        """
        return read_model(check_model_path(path), cls, precision)

    def __getstate__(self):
        state = super().__getstate__()
        if not self.__sklearn_is_fitted__():
            return state
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "detector.keras")
            write_model(path, self)
            return {"archive": path.read_bytes(), "params": self.get_params(deep=False)}

    def __setstate__(self, state):
        if "archive" not in state:
            return super().__setstate__(state)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "detector.keras")
            path.write_bytes(state["archive"])
            self.__dict__.update(read_model(path, type(self)).__dict__ | state["params"])

    def get_settings(self) -> dict:
        """The constructor's arguments as plain values, fit for JSON: those of `fit` after it."""
        settings = super().get_settings()
        if isinstance(settings["transformations"], TransformationSet):
            settings["transformations"] = settings["transformations"].to_list()
        return settings


def _sums(log_p):
    """What alpha's estimate needs of responses (n, m, k): the sums of p and of log p (2, m, k)."""
    return np.stack([np.exp(log_p).sum(0), log_p.sum(0)])
