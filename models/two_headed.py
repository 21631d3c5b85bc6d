"""Section 5.5's network, with a head for categories and one for transformations: training, scores.

A classifier of the categories alone, which is what a baseline has, is made and trained likewise.
"""

import itertools
import json
import math
import os
import zlib
from dataclasses import dataclass

import keras
import numpy as np

from models.responses import create_responder, create_trainer, responses
from models.wide_residual_network import create_wide_residual_network
from transformations import TransformationSet, Transformer
from utils.batches import pair_batches, predict
from utils.detector import to_unit_range
from utils.device import scoring_batch, use_xla
from utils.optimizers import SGD, Muon, one_cycle
from utils.scores import simplified_score
from utils.training import Checkpoint, fit_steps


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained; the defaults are section 5.5's.

    one_cycle: Muon and `utils.optimizers.one_cycle` instead of SGD with Nesterov's momentum and
    `step_schedule`.
    """

    depth: int = 16
    widen_factor: int = 8
    epochs: float = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    one_cycle: bool = False

    def create_network(
        self, input_shape: tuple[int, int, int], n_categories: int, *, two_headed: bool, **how
    ) -> keras.Model:
        """From images in [-1, 1] to logits, with heads for "categories" and 72 "transformations".

        Or, not two_headed, for the categories alone. how: seed and dtype, see
        `create_wide_residual_network`.
        """
        heads = {"categories": n_categories, "transformations": Transformer().n_transforms}
        how |= {"final_activation": None, "weight_decay": self.weight_decay}
        classes = heads if two_headed else n_categories
        return create_wide_residual_network(
            input_shape, classes, self.depth, self.widen_factor, **how
        )

    def create_optimizer(self, total_steps: int) -> keras.optimizers.Optimizer:
        """For a training of so many steps."""
        if self.one_cycle:
            return Muon(one_cycle(self.learning_rate, total_steps))
        return SGD(step_schedule(self.learning_rate, total_steps), momentum=0.9, nesterov=True)


RECIPES = {
    "paper": Recipe(),
    "one_cycle": Recipe(10, 4, epochs=30, learning_rate=1e-2, weight_decay=0.0, one_cycle=True),
}
"""`one_cycle` is a reduced recipe, with the optimiser of `models.recipes`' `fast`."""


def classifier(network: keras.Model) -> keras.Model:
    """A copy in float32 that gives the logits of the categories alone."""
    copy = keras.models.clone_model(
        network,
        clone_function=lambda layer: layer.from_config(layer.get_config() | {"dtype": "float32"}),
    )
    copy.set_weights(network.get_weights())
    logits = copy.output["categories"] if isinstance(copy.output, dict) else copy.output
    return keras.Model(copy.input, logits)


def augmentations(shift: int = 4) -> TransformationSet:
    """What a classifier usually sees of an image: flipped or not, shifted by up to 4 pixels.

    The publication of the wide residual network trains so (Zagoruyko & Komodakis, 2016).
    """
    shifts = range(-shift, shift + 1)
    return TransformationSet(list(itertools.product((False, True), shifts, shifts, (0,))))


def train_network(
    network: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    transformations: TransformationSet,
    recipe: Recipe = RECIPES["paper"],
    *,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 180.0,
    callbacks: list[keras.callbacks.Callback] = (),
    verbose: int = 1,
) -> float:
    """Train on images x (n, h, w, c) with categories y (n,); returns the seconds it took.

    An epoch shows each image once, in an order and under a transformation drawn at random. Two
    heads learn by the sum of their cross-entropies.

    checkpoint: a file that holds the state, written anew every checkpoint_seconds and after each
    epoch; where it exists, training goes on from there, to the weights that it would have ended
    with. ValueError where it is of another training.
    """
    k, batch_size = transformations.n_transforms, recipe.batch_size
    steps_per_epoch = math.ceil(len(x) / batch_size)
    total_steps = max(1, round(recipe.epochs * steps_per_epoch))
    trainer = create_trainer(network, transformations, x.shape[1:], x.dtype.name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(
        recipe.create_optimizer(total_steps),
        loss=keras.tree.map_structure(lambda head: loss, trainer.output),
        metrics=keras.tree.map_structure(lambda head: ["accuracy"], trainer.output),
        jit_compile=use_xla(),
    )

    def labels(image, t):
        both = {"categories": y[image], "transformations": t}
        return both if isinstance(trainer.output, dict) else y[image]

    settings = {"network": network.name, "precision": network.layers[1].dtype_policy.name}
    settings |= {"images": x.shape, "mean": float(x.mean()), "seed": seed, "momentum": 0.9}
    for name in ("epochs", "batch_size", "learning_rate"):
        settings[name] = getattr(recipe, name)
    settings["transformations"] = zlib.crc32(json.dumps(transformations.to_list()).encode())
    if recipe.one_cycle:  # of which older checkpoints say nothing
        settings["one_cycle"] = True
    state = Checkpoint(checkpoint, checkpoint_seconds, json.dumps(settings, sort_keys=True))
    fit_steps(
        trainer,
        lambda epoch: pair_batches(x, random_pairs(len(x), k, seed, epoch), k, batch_size, labels),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        checkpoint=state,
        learning_rate=recipe.learning_rate,
        callbacks=callbacks,
        verbose=verbose,
    )
    return state.seconds


def step_schedule(
    learning_rate: float, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate, times 0.2 from each of epochs 60, 120 and 160 of 200 on, in proportion."""
    # Keras gives the earlier value up to and including a boundary, steps counting from 0.
    boundaries = [round(drop * total_steps) - 1 for drop in (0.3, 0.6, 0.8)]
    values = [learning_rate * 0.2**i for i in range(4)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


def random_pairs(n: int, n_transforms: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's shuffle of n images, each with one random t: int32, image * n_transforms + t."""
    rng = np.random.default_rng((seed, epoch))
    return (rng.permutation(n) * n_transforms + rng.integers(n_transforms, size=n)).astype(np.int32)


def simplified_scores(network: keras.Model, x: np.ndarray) -> np.ndarray:
    """The simplified score (section 4.2) of the transformations' head: (n, h, w, c) to (n,)."""
    transformer = Transformer()
    shape = max(1, scoring_batch() // len(transformer)), *x.shape[1:]
    responder = create_responder(network, transformer, shape, x.dtype.name)
    parts = responses(responder, x, "scoring", verbose=0)
    return np.concatenate([simplified_score(log_p) for _, log_p in parts])


def accuracy(network: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images x whose category the network finds, untransformed."""
    logits = predict(classifier(network), x, scoring_batch(), to_unit_range)
    return float((logits.argmax(1) == y).mean())
