"""Section 5.5's networks of labelled images: a classifier for the baselines, and the paper's, which
has a second head for the 72 transformations on the same features."""

import itertools
import math
import zlib
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np

from baselines.odin import odin
from models.responses import compile_trainer, create_responder, create_trainer
from models.wide_residual_network import create_wide_residual_network
from transformations import TransformationSet, Transformer
from utils.batches import pair_batches, predict, predictions
from utils.detector import Detector, to_unit_range
from utils.device import PRECISIONS, scoring_batch
from utils.dirichlet import simplified_score
from utils.optimizers import SGD, Muon, one_cycle, step_schedule
from utils.settings import choice, number, setting, whole_number
from utils.training import Checkpoint, fit_steps

RECIPES = {
    "paper": {},
    "one_cycle": {
        "schedule": "one_cycle",
        "widen_factor": 2,
        "epochs": 30,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
    },
}
"""`paper` is section 5.5: the constructor's own defaults. `one_cycle` is a reduced recipe, with the
optimiser of `models.recipes`' `fast`."""


DROPS = (0.3, 0.6, 0.8), 0.2
"""The learning rate of "steps" falls at epochs 60, 120 and 160 of 200, to a fifth each time."""


def augmentations() -> TransformationSet:
    """What a classifier usually sees of an image: flipped or not, shifted by up to 4 pixels.

    The publication of the wide residual network trains so (Zagoruyko & Komodakis, 2016).
    """
    shifts = range(-4, 5)
    return TransformationSet(list(itertools.product((False, True), shifts, shifts, (0,))))


@dataclass(eq=False, repr=False, kw_only=True)
class Classifier(Detector):
    """A wide residual network that learns the categories of images, and its scores.

    `fit(x, y)` takes their categories too: (n,) whole numbers under n_categories. An epoch shows
    each image once, in an order and under a transformation drawn at random, here of
    `augmentations`. schedule: "steps" is SGD with Nesterov's momentum and DROPS,
    "one_cycle" is Muon with `utils.optimizers.one_cycle`. precision: see `TransformationDetector`.

    temperature and perturbation are those of the first score, `baselines.odin.odin`; the other is
    the maximum softmax probability. After `fit`: network_, from images in [-1, 1] to logits.
    """

    NOT_OF_TRAINING: ClassVar = Detector.NOT_OF_TRAINING | {"temperature", "perturbation"}

    n_categories: int = setting(10, whole_number(2))
    depth: int = setting(16, whole_number())
    widen_factor: int = setting(8, whole_number())
    epochs: float = setting(200, number())
    batch_size: int = setting(128, whole_number())
    schedule: str = setting("steps", choice("steps", "one_cycle"))
    learning_rate: float = setting(0.1, number())
    weight_decay: float = setting(5e-4, number(low_too=True))
    precision: str = setting("auto", choice(*PRECISIONS))
    temperature: float = setting(1000.0, number())
    perturbation: float = setting(0.0014, number(low_too=True))

    def fit(self, x: np.ndarray, y: np.ndarray, **how) -> "Classifier":
        """`Detector.fit` with categories y (n,). ValueError where they do not fit the images."""
        y = np.asarray(y)
        if y.shape != np.shape(x)[:1] or not np.isin(y, range(self.n_categories)).all():
            found = f"{y.dtype} of shape {y.shape}"
            raise ValueError(f"y is {found}, expected {len(x)} numbers under {self.n_categories}")
        self._labels_of_fit = y.astype(np.int64)
        try:
            return super().fit(x, **how)
        finally:
            del self._labels_of_fit

    def _fingerprint(self, x):
        return f"{super()._fingerprint(x)}, labels {zlib.crc32(self._labels_of_fit)}"

    def _transformations(self) -> TransformationSet:
        """Under which training shows images."""
        return augmentations()

    def _create_network(self) -> keras.Model:
        """From images in [-1, 1] to logits."""
        settings = self.settings_
        how = {"weight_decay": settings.weight_decay, "seed": settings.seed}
        how |= {"final_activation": None, "dtype": self.precision_}
        size = settings.depth, settings.widen_factor
        return create_wide_residual_network(self.image_shape_, self._heads(), *size, **how)

    def _heads(self):
        """The number of logits, or those of several heads by name."""
        return self.settings_.n_categories

    def _labels(self, image, t):
        """What a batch of images, by number, under transformations t is to be taken for."""
        return self._labels_of_fit[image]

    def _fit(self, x: np.ndarray, checkpoint: Checkpoint, callbacks: list) -> None:
        settings, self.transformer_ = self.settings_, self._transformations()
        k, batch_size = len(self.transformer_), settings.batch_size
        steps_per_epoch = math.ceil(len(x) / batch_size)
        total_steps = max(1, round(settings.epochs * steps_per_epoch))
        self.network_ = self._create_network()
        trainer = create_trainer(self.network_, self.transformer_, x.shape[1:], x.dtype.name)
        rate = settings.learning_rate
        sgd = SGD(step_schedule(rate, total_steps, *DROPS), momentum=0.9, nesterov=True)
        muon = Muon(one_cycle(rate, total_steps))
        compile_trainer(trainer, sgd if settings.schedule == "steps" else muon)
        fit_steps(
            trainer,
            lambda epoch: pair_batches(
                x, random_pairs(len(x), k, settings.seed, epoch), k, batch_size, self._labels
            ),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            checkpoint=checkpoint,
            learning_rate=rate,
            callbacks=callbacks,
            verbose=self.verbose,
        )

    def _scores(self, x: np.ndarray) -> dict[str, np.ndarray]:
        network, settings = self.categories(), self.settings_
        how = {"temperature": settings.temperature, "perturbation": settings.perturbation}
        return {
            "odin": odin(network, x, **how),
            "maximum_softmax": odin(network, x, temperature=1.0, perturbation=0.0),
        }

    def categories(self) -> keras.Model:
        """A copy of the network in float32 that gives the logits of the categories alone."""

        def in_float32(layer):
            return layer.from_config(layer.get_config() | {"dtype": "float32"})

        copy = keras.models.clone_model(self.network_, clone_function=in_float32)
        copy.set_weights(self.network_.get_weights())
        logits = copy.output["categories"] if isinstance(copy.output, dict) else copy.output
        return keras.Model(copy.input, logits)

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """The share of images x whose category y (n,) the network finds, untransformed."""
        logits = predict(self.categories(), x, scoring_batch(), to_unit_range)
        return float((logits.argmax(1) == y).mean())


class TwoHeaded(Classifier):
    """The paper's: it learns categories and transformations, by the sum of their cross-entropies.

    Its own score is the simplified one (section 4.2) of the transformations.
    """

    def _transformations(self):
        return Transformer()

    def _heads(self):
        return {"categories": super()._heads(), "transformations": len(self.transformer_)}

    def _labels(self, image, t):
        return {"categories": self._labels_of_fit[image], "transformations": t}

    def _scores(self, x):
        shape = max(1, scoring_batch() // len(self.transformer_)), *x.shape[1:]
        responder = create_responder(self.network_, self.transformer_, shape, x.dtype.name)
        how = {"description": "scoring", "verbose": self.verbose}
        parts = predictions(responder, x, shape[0], **how)
        own = [simplified_score(each["log_p"].astype(np.float64)) for _, each in parts]
        scores = {"transformations": np.concatenate(own)}
        others = super()._scores(x).items()
        return scores | {f"{name}_two_headed": each for name, each in others}


def random_pairs(n: int, n_transforms: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's shuffle of n images, each with one random t: int32, image * n_transforms + t."""
    rng = np.random.default_rng((seed, epoch))
    return (rng.permutation(n) * n_transforms + rng.integers(n_transforms, size=n)).astype(np.int32)
