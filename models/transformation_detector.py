"""The paper's method (section 4): tell transformations apart, then score the softmax responses."""

import json
import math
import operator
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np
from keras import ops
from scipy.special import logsumexp
from tqdm.auto import tqdm

from models.wide_residual_network import create_wide_residual_network, scale_images
from transformations import SimpleTransformer, TransformationSet, Transformer, TransformLayer
from utils.backend import (
    all_transformed,
    backend,
    device_name,
    resolve_precision,
    scoring_batch,
    use_xla,
    versions,
)
from utils.detector import Detector, NotFittedError, check_images
from utils.dirichlet import estimate_alpha, normality_score
from utils.optimizers import Muon
from utils.training import Checkpoint, fit_pairs

SCORES = ("dirichlet", "simplified", "rotation")
SCORED = ("all", "unflipped")
SCHEDULES = ("constant", "one_cycle")
OPTIMIZERS = {"adam": keras.optimizers.Adam, "muon": Muon}

RECIPES = {
    "paper": {},
    "one_cycle": {"schedule": "one_cycle", "learning_rate": 4e-3, "weight_decay": 0.0},
    "fast": {
        "optimizer": "muon",
        "schedule": "one_cycle",
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "widen_factor": 2,
        "samples": 400_000,
        "score": "rotation",
        "scored": "unflipped",
        "alpha_images": 500,
    },
    "small": {
        "schedule": "one_cycle",
        "learning_rate": 4e-3,
        "weight_decay": 0.0,
        "widen_factor": 1,
    },
}
"""Named hyperparameters. `paper` is section 5.3: the constructor's own defaults."""

MAX_ACTIVATIONS = 2**32
"""A layer's numbers while scoring, over which `load` takes a file for absurd: 14 times the paper's
at 64x64 on a GPU."""

FORMAT = 2


class TransformationDetector(Detector):
    """Anomaly detection by geometric transformations.

    transformations: "full" (72), "simple" (8) or a `TransformationSet`. None is the paper's value
    at the images' size:

    - translation, of the full set: a quarter of the side, 8 pixels at 32x32 and 16 at 64x64;
    - depth, widen_factor: 10, 4 up to 32x32 and 16, 8 above;
    - epochs over the |T| * n transformed images: 200 / |T|, rounded up. It may be a fraction.

    samples: instead of epochs, how many transformed images training sees, whatever n is. optimizer:
    "adam", or "muon", see `utils.optimizers.Muon`, with learning_rate, "constant" or "one_cycle"
    (linear warm-up from 1/25 of it over the first three tenths, then cosine to 0). weight_decay:
    see `create_wide_residual_network`. precision: "float32", "mixed_bfloat16", or "auto", which
    takes bfloat16 where the device computes it. The same seed gives the same initial weights and,
    on any backend, the same order of pairs.

    score: "dirichlet" (section 4.2), "simplified" (its last paragraph) or "rotation", which is not
    the paper's: the Dirichlet score of the rotation alone, from responses summed over flips and
    shifts. Sums of a Dirichlet vector's components are a Dirichlet vector too. Most of the 72
    components are nearly 0, and their logarithms decide the paper's score; of the sums there are
    four. scored: the transformations under which an image is scored, "all", or "unflipped", half as
    many. alpha_images: alpha is estimated from a random so many of the training images, None from
    all of them.

    After `fit`, for m scored of k transformations: network_ (images to logits), transformer_,
    scored_ (m,) their indices, alpha_ (m, k) float64, rotation_alpha_ (m, rotations), precision_,
    found_ (how many transformed images training saw), seconds_, the time of training, of
    estimating alpha and of the last scoring, and details_: on how many images, with what. Pickles
    and copies are made by `save` and `load`.
    """

    def __init__(
        self,
        transformations: str | TransformationSet = "full",
        *,
        score: str = "dirichlet",
        scored: str = "all",
        alpha_images: int | None = None,
        translation: int | None = None,
        depth: int | None = None,
        widen_factor: int | None = None,
        dropout_rate: float = 0.0,
        epochs: float | None = None,
        samples: int | None = None,
        batch_size: int = 128,
        optimizer: str = "adam",
        learning_rate: float = 1e-3,
        schedule: str = "constant",
        weight_decay: float = 5e-4,
        precision: str = "auto",
        seed: int = 0,
        verbose: int = 1,
    ):
        self.transformations = transformations
        self.score = score
        self.scored = scored
        self.alpha_images = alpha_images
        self.translation = translation
        self.depth = depth
        self.widen_factor = widen_factor
        self.dropout_rate = dropout_rate
        self.epochs = epochs
        self.samples = samples
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.precision = precision
        self.seed = seed
        self.verbose = verbose

    # ------------------------------------------------------------------------------------ training

    def fit(
        self,
        x: np.ndarray,
        y: None = None,
        *,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_seconds: float = 180.0,
        callbacks: list[keras.callbacks.Callback] = (),
    ) -> "TransformationDetector":
        """Train on images x (n, h, w, c) of the normal class, uint8 or float in [-1, 1].

        checkpoint: a file that holds the training's state, written anew every checkpoint_seconds
        and after each epoch; where it exists, training goes on from there and sees the pairs that
        it would have seen. It is left for the caller to remove.

        Raises ValueError for images or settings that make no sense, and for a checkpoint of other
        settings.
        """
        x = check_images(x)
        self._check_settings()
        self._forget_calibration()
        self._build(x.shape[1:], "uint8" if x.dtype == np.uint8 else "float32")
        self.seconds_ = {"training": self._train(x, checkpoint, checkpoint_seconds, callbacks)}
        self.found_ = {"training_samples": self.training_samples(len(x))}
        start = time.perf_counter()
        self._estimate_alpha(x)
        self.seconds_["alpha"] = time.perf_counter() - start
        self.details_ = {
            "images": len(x),
            "epochs": round(self._epochs(len(x)), 2),
            "backend": backend(),
            "device": device_name(),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
        return self

    def _build(self, image_shape, image_dtype):
        """The untrained network and the models that feed it: to train, to score, to explain."""
        self.image_shape_, self.image_dtype_ = tuple(image_shape), image_dtype
        height, width, _ = image_shape
        self.transformer_ = self._resolve_transformations(min(height, width))
        self.precision_ = resolve_precision(self.precision)
        depth, widen_factor = self._architecture(max(height, width))
        self.network_ = create_wide_residual_network(
            self.image_shape_,
            self.transformer_.n_transforms,
            depth=depth,
            widen_factor=widen_factor,
            dropout_rate=self.dropout_rate,
            final_activation=None,
            weight_decay=self.weight_decay,
            seed=self.seed,
            dtype=self.precision_,
        )
        images = keras.Input(self.image_shape_, dtype=image_dtype)
        t = keras.Input((), dtype="int32")
        transformed = TransformLayer(self.transformer_.transformations)([images, t])
        self._trainer = keras.Model([images, t], self.network_(scale_images(transformed)))

        self.scored_ = self._resolve_scored()
        self._responder = self._create_responder(self.scored_)

    def _create_responder(self, indices):
        """The model from images to log y(T_i(x)) for the transformations i of some indices."""
        height, width, _ = self.image_shape_
        k, m = self.transformer_.n_transforms, len(indices)
        b = max(1, scoring_batch() // m)  # images: one where it has more transformations
        images = keras.Input(batch_shape=(b, *self.image_shape_), dtype=self.image_dtype_)
        moved = all_transformed(images, self.transformer_.index_maps(height, width)[indices])
        log_p = ops.log_softmax(self.network_(scale_images(moved)), axis=-1)
        responder = keras.Model(images, ops.reshape(log_p, (b, m, k)))
        responder.compile(jit_compile=use_xla())
        return responder

    def _architecture(self, side):
        large = side > 32
        return self.depth or (16 if large else 10), self.widen_factor or (8 if large else 4)

    def _train(self, x, checkpoint, checkpoint_seconds, callbacks):
        """Trains; returns the seconds it took, those before an interruption included."""
        k = self.transformer_.n_transforms
        steps_per_epoch = math.ceil(len(x) * k / self.batch_size)
        total_steps = max(1, round(self._epochs(len(x)) * steps_per_epoch))
        self._compile_trainer(total_steps, use_xla())
        state = Checkpoint(checkpoint, checkpoint_seconds, self._fingerprint(x))
        fit_pairs(
            self._trainer,
            x,
            lambda epoch: epoch_pairs(len(x), k, self.seed, epoch),
            n_transforms=k,
            batch_size=self.batch_size,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            checkpoint=state,
            callbacks=callbacks,
            verbose=self.verbose,
        )
        return state.seconds

    def _compile_trainer(self, total_steps, jit_compile):
        self._trainer.compile(
            OPTIMIZERS[self.optimizer](self._learning_rate(total_steps)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=jit_compile,
        )

    def _learning_rate(self, total_steps):
        if self.schedule == "constant":
            return self.learning_rate
        warmup = max(1, round(0.3 * total_steps))
        return keras.optimizers.schedules.CosineDecay(
            self.learning_rate / 25,
            decay_steps=max(1, total_steps - warmup),
            warmup_target=self.learning_rate,
            warmup_steps=warmup,
        )

    def _epochs(self, n):
        k = self.transformer_.n_transforms
        if self.epochs:
            return self.epochs
        return self.samples / (n * k) if self.samples else math.ceil(200 / k)

    def training_samples(self, n: int) -> int:
        """How many transformed images training on n images sees."""
        return round(self._epochs(n) * n * self.transformer_.n_transforms)

    def scoring_passes(self, n: int, n_scored: int) -> int:
        """How many forward passes alpha takes after training on n images, and n_scored images."""
        return (min(n, self.alpha_images or n) + n_scored) * len(self.scored_)

    # ------------------------------------------------------------------------------------- scoring

    def score_samples(self, x: np.ndarray) -> np.ndarray:
        """The normality score of images x (n, h, w, c): float64 (n,), higher = more normal.

        Raises ValueError for images of another shape or kind than in training, and NotFittedError
        before `fit`.
        """
        return self.score_variants(x)[self.score]

    def score_variants(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """All scores by name from one pass over the images, the one of `score` first.

        "rotation" is among them where the transformations have different rotations.
        """
        x = self._check_scored(x)
        start = time.perf_counter()
        names = [name for name in SCORES if name != "rotation" or self._has_rotations()]
        names.sort(key=lambda name: name != self.score)
        scores = {name: np.empty(len(x)) for name in names}
        for part, log_p in self._responses(x, "scoring"):
            for name in names:
                scores[name][part] = self._score(name, log_p)
        self.seconds_["scoring"] = time.perf_counter() - start
        return scores

    def _score(self, name, log_p):
        if name == "dirichlet":
            return normality_score(self.alpha_, log_p)
        if name == "simplified":
            return simplified_score(log_p, self.scored_)
        return normality_score(self.rotation_alpha_, rotation_responses(log_p, self._rotations()))

    def responses(self, x: np.ndarray) -> np.ndarray:
        """The softmax responses y(T_i(x)) to every transformation: float32 (n, k, k).

        Row i holds the probabilities of each transformation to be what was done, where T_i was.
        Raises as `score_samples`.
        """
        x = self._check_scored(x)
        k = self.transformer_.n_transforms
        whole = len(self.scored_) == k
        responder = self._responder if whole else self._create_responder(np.arange(k))
        parts = self._responses(x, "explaining", responder)
        return np.concatenate([np.exp(log_p).astype("f4") for _, log_p in parts])

    def log_responses(self, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (part, log y(T_i(x[part]))), from which all scores are computed, batch by batch.

        part: a slice of x. The logarithms are float64 (len(part), m, k), for the m scored of the k
        transformations. Raises as `score_samples`.
        """
        return self._responses(self._check_scored(x), "responses")

    def _check_scored(self, x):
        if not hasattr(self, "alpha_"):
            raise NotFittedError("this detector is not trained yet: call fit, or load a saved one")
        return check_images(x, self.image_shape_, self.image_dtype_)

    def _estimate_alpha(self, x):
        """Section 4.2's alpha_i of every scored transformation, from running sums (m, k)."""
        n = min(len(x), self.alpha_images or len(x))
        if n < len(x):
            x = x[np.sort(np.random.default_rng(self.seed).choice(len(x), n, replace=False))]
        sums = rotation_sums = 0.0
        for _, log_p in self._responses(x, "estimating alpha"):
            sums += _sums(log_p)
            if self._has_rotations():
                rotation_sums += _sums(rotation_responses(log_p, self._rotations()))
        self.alpha_ = estimate_alpha(*sums / n)
        if self._has_rotations():
            self.rotation_alpha_ = estimate_alpha(*rotation_sums / n)

    def _rotations(self):
        """The rotation of every transformation: (k,) int."""
        return np.array([each.k for each in self.transformer_.transformations])

    def _has_rotations(self):
        return len(set(self._rotations())) > 1

    def _responses(self, x, description, responder=None):
        """Yields (slice of x, its log-softmax responses (b, m, k) in float64), batch by batch."""
        responder = responder or self._responder
        b = responder.input_shape[0]
        starts = tqdm(
            range(0, len(x), b), description, unit="batch", mininterval=1, disable=not self.verbose
        )
        for start in starts:
            batch = x[start : start + b]
            n = len(batch)
            if n < b:  # one shape for all batches: nothing is compiled again
                batch = np.concatenate([batch, np.repeat(batch[-1:], b - n, axis=0)])
            log_p = np.asarray(responder.predict_on_batch(batch)[:n], np.float64)
            yield slice(start, start + n), log_p

    # ------------------------------------------------------------------------------ saving, loading

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, alpha, threshold and settings to one file: a Keras archive and one more.

        `load` gives a detector with equal scores, bit for bit on the same device and backend.
        Raises ValueError where path does not end in .keras, and NotFittedError before `fit`.
        """
        path = _check_model_path(path)
        if not hasattr(self, "alpha_"):
            raise NotFittedError("this detector is not trained yet: call fit before save")
        partial = path.with_name(f".{path.stem}.part.keras")
        keras.saving.save_model(self.network_, partial)
        settings = self.get_settings() | {"precision": self.precision_}
        detector = {
            "format": FORMAT,
            "settings": settings,
            "image_shape": self.image_shape_,
            "image_dtype": self.image_dtype_,
            "alpha": self.alpha_.tolist(),
            "rotation_alpha": self.rotation_alpha_.tolist() if self._has_rotations() else None,
            "seconds": self.seconds_,
            "found": self.found_,
            "details": self.details_,
        }
        if hasattr(self, "calibration_scores_"):
            detector["calibration_scores"] = self.calibration_scores_.tolist()
            detector["false_alarm_rate"] = self.false_alarm_rate_
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("detector.json", json.dumps(detector))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike, *, precision: str | None = None):
        """The detector that `save` wrote; on another backend its scores agree within rounding.

        The file may come from a stranger. The network is built from the settings, never from code
        or classes named in the file, nothing is unpickled, and weights are read once they are known
        to be in the file and as many as the settings say. precision: None keeps the one that the
        detector was trained with.

        Raises ValueError where the file is not a saved detector, OSError where it cannot be read.
        """
        path = _check_model_path(path)
        with open(path, "rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    return cls._from_archive(archive, path, precision)
            except Exception as error:  # zip, JSON, HDF5, NumPy: whatever damage sets off
                raise ValueError(
                    f"{path} is not a saved detector of this project: {error or repr(error)}"
                ) from error

    @classmethod
    def _from_archive(cls, archive, path, precision):
        _check_archive(archive, path.stat().st_size)
        saved = json.loads(archive.read("detector.json"))
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']} where this version reads {FORMAT}")
        settings = dict(saved["settings"])
        if not isinstance(settings["transformations"], str):
            settings["transformations"] = TransformationSet(settings["transformations"])
        detector = cls(**settings)
        detector.precision = precision or detector.precision
        detector._check_settings()
        shape = tuple(saved["image_shape"])
        detector._check_size(shape, archive.getinfo("model.weights.h5").file_size)
        detector._build(shape, saved["image_dtype"])
        _check_weights(archive, detector.network_)
        detector.network_.load_weights(path)
        k, m = detector.transformer_.n_transforms, len(detector.scored_)
        detector.alpha_ = _finite(saved["alpha"]).reshape(m, k)
        if detector._has_rotations():
            detector.rotation_alpha_ = _finite(saved["rotation_alpha"]).reshape(m, -1)
        detector.seconds_ = {part: float(value) for part, value in saved["seconds"].items()}
        detector.found_, detector.details_ = dict(saved["found"]), dict(saved["details"])
        if "calibration_scores" in saved:
            detector.calibration_scores_ = np.sort(_finite(saved["calibration_scores"]).ravel())
            detector.set_false_alarm_rate(saved["false_alarm_rate"])
        return detector

    def _check_size(self, shape, stored_bytes):
        """Refuses settings of a network larger than its stored weights, or than memories are."""
        height, width, channels = map(operator.index, shape)
        depth, widen_factor = map(operator.index, self._architecture(max(height, width)))
        if not (0 < depth <= 1000 and widen_factor > 0 and min(height, width, channels) > 0):
            raise ValueError(f"depth {depth}, widen factor {widen_factor}, images {shape}")
        k = len(self._resolve_transformations(min(height, width)))
        # the 3x3 convolutions from a group's filters to as many, and the smallest head
        n_convolutions = 2 * ((depth - 4) // 6) - 1
        weights = 9 * n_convolutions * sum((16 * 2**g * widen_factor) ** 2 for g in range(3))
        weights += 64 * widen_factor * k
        if 4 * weights > stored_bytes:
            raise ValueError(
                f"depth {depth}, widen factor {widen_factor} and {k} transformations make over "
                f"{weights} weights, the file has {stored_bytes} bytes of them"
            )
        passes, maps = max(scoring_batch(), k), max(16 * widen_factor, channels)
        if passes * height * width * maps > MAX_ACTIVATIONS:
            raise ValueError(f"images {shape} under {k} transformations would exhaust memory")

    def __getstate__(self):
        state = super().__getstate__()
        if not hasattr(self, "alpha_"):
            return state
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "detector.keras")
            self.save(path)
            return {"archive": path.read_bytes(), "params": self.get_params(deep=False)}

    def __setstate__(self, state):
        if "archive" not in state:
            return super().__setstate__(state)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "detector.keras")
            path.write_bytes(state["archive"])
            self.__dict__.update(self.load(path).__dict__ | state["params"])

    # ------------------------------------------------------------------------------------ settings

    def get_settings(self) -> dict:
        """The constructor's arguments as plain values, fit for JSON."""
        settings = super().get_settings()
        if isinstance(self.transformations, TransformationSet):
            settings["transformations"] = self.transformations.to_list()
        return settings

    def _fingerprint(self, x):
        """What a checkpoint must share with the run that goes on from it."""
        settings = self.get_settings() | {"precision": self.precision_}
        for irrelevant in ("score", "scored", "alpha_images", "verbose"):
            del settings[irrelevant]
        return json.dumps(settings | {"images": x.shape, "mean": float(x.mean())}, sort_keys=True)

    def _resolve_transformations(self, side):
        if isinstance(self.transformations, TransformationSet):
            return self.transformations
        if self.transformations == "simple":
            return SimpleTransformer()
        translation = side // 4 if self.translation is None else self.translation
        return Transformer(translation, translation)

    def _resolve_scored(self):
        """The indices of the transformations that images are scored under: (m,) int."""
        if self.score == "rotation" and not self._has_rotations():
            raise ValueError(
                "score 'rotation' needs transformations with different rotations; choose "
                "another score, or other transformations"
            )
        if self.scored == "all":
            return np.arange(self.transformer_.n_transforms)
        return np.flatnonzero([not each.flip for each in self.transformer_.transformations])

    def _check_settings(self):
        if not isinstance(self.transformations, TransformationSet):
            _check_choice("transformations", self.transformations, ("full", "simple"))
        _check_choice("score", self.score, SCORES)
        _check_choice("scored", self.scored, SCORED)
        _check_choice("optimizer", self.optimizer, tuple(OPTIMIZERS))
        _check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "samples", "batch_size", "learning_rate", "alpha_images"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, expected a positive number")


def simplified_score(log_p: np.ndarray, scored: np.ndarray | None = None) -> np.ndarray:
    """The mean over i of y(T_i(x))_i (section 4.2), from log y (n, m, k): float64 (n,).

    scored: the m transformations i that log_p is of; None where it is of all, m = k.
    """
    scored = np.arange(log_p.shape[-1]) if scored is None else scored
    return np.exp(log_p[:, np.arange(len(scored)), scored]).mean(-1)


def rotation_responses(log_p: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """Logarithms of the responses (n, m, k) summed over transformations of the same rotation.

    rotations: (k,), of each transformation. Returns (n, m, number of different rotations).
    """
    parts = [logsumexp(log_p[..., rotations == each], axis=-1) for each in np.unique(rotations)]
    return np.stack(parts, axis=-1)


def _sums(log_p):
    """What alpha's estimate needs of responses (n, m, k): the sums of p and of log p (2, m, k)."""
    return np.stack([np.exp(log_p).sum(0), log_p.sum(0)])


def epoch_pairs(n: int, n_transforms: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's shuffle of all pairs, as int32 numbers image * n_transforms + t."""
    shuffled = np.arange(n * n_transforms, dtype=np.int32)
    np.random.default_rng((seed, epoch)).shuffle(shuffled)
    return shuffled


def _check_model_path(path):
    path = Path(path)
    if path.suffix != ".keras":
        raise ValueError(f"{path} must end in .keras: a saved detector is a Keras archive")
    return path


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _check_archive(archive, size):
    """Refuses an archive that unpacks to more than the file's own size, which `save` never does."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > size:
        raise ValueError(f"its {size} bytes would unpack to {unpacked}")


def _check_weights(archive, network):
    """Refuses weights that lie outside the archive, or are more than the network's, unread."""

    def problem(name, link):
        if not isinstance(link, h5py.HardLink):
            return f"weights {name} are a link that leads elsewhere"
        if isinstance(file[name], h5py.Dataset):
            if file[name].external or file[name].is_virtual:
                return f"weights {name} lie in another file"
            sizes.append(file[name].size)
        return None

    sizes = []
    with archive.open("model.weights.h5") as member, h5py.File(member) as file:
        found = file.visititems_links(problem)
    if found:
        raise ValueError(found)
    # Dropout's seeds, two numbers a layer, are stored too
    if not 0 <= sum(sizes) - network.count_params() <= 2 * len(network.layers):
        raise ValueError(
            f"{sum(sizes)} weights are stored for a network of {network.count_params()}"
        )


def _finite(values):
    values = np.array(values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("alpha and calibration scores must be finite")
    return values
