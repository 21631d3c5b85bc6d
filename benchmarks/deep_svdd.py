"""What changes Deep SVDD's AUROC, of what its authors' releases have and ours has not.

    python -m benchmarks.deep_svdd --classes 6,7 --parts normalised,fixed,dictionary,epsilon

Of the one for Theano: the decoder's last convolution is `normalised` too; batches are put together
once, and their order alone is drawn anew each epoch (`fixed`); the first layer's kernels start from
a `dictionary` of patches of 500 images, whose channels a reshape has mixed; Adam's `epsilon` is
1e-8. Of the one for PyTorch: batch normalisation is `plain`, its gamma 1 and its beta 0. Trains on
CIFAR-10 by the paper's recipe, or less, and prints a line of JSON a class: the AUROC, in percent,
of the test set.
"""

import contextlib
import functools
import json
from unittest import mock

import keras
import numpy as np
from sklearn.decomposition import sparse_encode
from sklearn.feature_extraction.image import PatchExtractor

from baselines import deep_svdd
from baselines.deep_svdd import DeepSVDD
from benchmarks.options import plain_parser
from models.layers import BatchNormalization
from utils.batches import epoch_batches
from utils.commands import file_path
from utils.datasets import load_dataset
from utils.detector import to_unit_range
from utils.device import PRECISIONS, device_name
from utils.metrics import auroc
from utils.optimizers import Adam

PARTS = ("normalised", "fixed", "dictionary", "epsilon", "plain")


def main() -> None:
    """The command at the head of this file."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=file_path, default="data", help="where data sets lie (default: data)")
    add("--classes", default="6,7", help="by number, separated by commas (default: 6,7)")
    add("--parts", default="", help=f"of {', '.join(PARTS)} (default: none)")
    add("--epochs", type=float, default=150.0, help="of Deep SVDD; 7/3 of it come before")
    add("--seed", type=int, default=0, help="default: 0")
    add("--precision", choices=PRECISIONS, default="auto", help="default: auto")
    add("--checkpoints", type=file_path, metavar="FOLDER", help="where to go on from, if stopped")
    options = parser.parse_args()
    parts = [part for part in options.parts.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; known are {', '.join(PARTS)}")
    data = load_dataset("cifar10", options.data_dir)
    for label in map(int, options.classes.split(",")):
        detector = WithParts(
            parts, epochs=options.epochs, seed=options.seed, precision=options.precision, verbose=0
        )
        name = f"deep_svdd_{'_'.join(parts)}_{label}_{options.seed}.checkpoint.keras"
        checkpoint = options.checkpoints and options.checkpoints / name
        if checkpoint:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        detector.fit(data.x_train[data.y_train == label], checkpoint=checkpoint)
        scores = detector.score_samples(data.x_test)
        found = {
            "class": data.class_names[label],
            "parts": parts,
            "epochs": options.epochs,
            "seed": options.seed,
            "precision": detector.precision_,
            "device": device_name(),
            "seconds": round(detector.seconds_["training"]),
            "auroc": round(100 * auroc(data.y_test == label, scores), 2),
        }
        print(json.dumps(found), flush=True)
        if checkpoint:
            checkpoint.unlink()


class WithParts(DeepSVDD):
    """Deep SVDD with some of PARTS."""

    def __init__(self, parts: list[str], **settings):
        super().__init__(**settings)
        self.parts = parts

    def _fit_model(self, *arguments):
        with contextlib.ExitStack() as stack:
            if "fixed" in self.parts:
                stack.enter_context(mock.patch.object(deep_svdd, "epoch_batches", fixed_batches))
            if "epsilon" in self.parts:
                adam = functools.partial(Adam, epsilon=1e-8)
                stack.enter_context(mock.patch.object(deep_svdd, "Adam", adam))
            super()._fit_model(*arguments)

    def _lenet(self, x):
        encoder, decoder, normalise = super()._lenet(x)
        if "normalised" in self.parts:
            y = BatchNormalization(momentum=0.9, epsilon=1e-4)(decoder.layers[-2].output)
            decoder = keras.Model(decoder.input, keras.layers.Activation("sigmoid")(y))
        if "dictionary" in self.parts:
            first = next(each for each in encoder.layers if isinstance(each, keras.layers.Conv2D))
            images = normalise(to_unit_range(x))
            first.kernel.assign(dictionary(np.asarray(images), first.filters, self.settings_.seed))
        if "plain" in self.parts:
            for each in [*encoder.layers, *decoder.layers]:
                if isinstance(each, BatchNormalization):
                    each.gamma.trainable = each.beta.trainable = False
        return encoder, decoder, normalise


def fixed_batches(n: int, batch_size: int, epochs: float, seed: int) -> list[np.ndarray]:
    """`epoch_batches` that are always of the same images; their order is new each epoch."""
    batches = epoch_batches(n, batch_size, 1, seed)
    order = epoch_batches(len(batches), 1, epochs, seed)
    return [batches[int(each[0])] for each in order]


def dictionary(images: np.ndarray, atoms: int, seed: int) -> np.ndarray:
    """Kernels (5, 5, c, atoms) learnt from 5x5 patches of images (n, h, w, c), as released.

    The release has images as (n, c, h, w), and calls the patches' numbers, taken as (h, w, c) of
    what is not, (c, 5, 5); its convolution turns the kernels by 180 degrees.
    """
    rng = np.random.default_rng(seed)
    some = images[rng.permutation(len(images))[:500]]
    n, height, width, channels = some.shape
    mixed = some.transpose(0, 3, 1, 2).reshape(n, height, width, channels)
    patches = PatchExtractor(patch_size=(5, 5)).transform(mixed)
    patches = patches.reshape(len(patches), -1)
    patches = (patches - patches.mean(axis=0)) / patches.std(axis=0)
    found = learnt_atoms(patches.astype(np.float64), atoms, rng)
    kernels = found.reshape(atoms, channels, 5, 5)[:, :, ::-1, ::-1]
    return kernels.transpose(2, 3, 1, 0).astype(np.float32)


def learnt_atoms(x: np.ndarray, atoms: int, rng: np.random.Generator, steps: int = 1000):
    """Atoms (atoms, d) of x (n, d), by MiniBatchDictionaryLearning of scikit-learn 0.18, batches of
    10 and alpha 1: the release's version, whose step towards an atom leaves out that it is to be
    divided by the atom's own code (scikit-learn's issue 4866), so that atoms come out more alike.
    """
    variances, axes = np.linalg.eigh(x.T @ x)
    found = (axes * np.sqrt(np.maximum(variances, 0.0)))[:, ::-1][:, :atoms]
    order = rng.permutation(len(x))
    codes, products = np.zeros((atoms, atoms)), np.zeros((x.shape[1], atoms))
    for step in range(steps):
        batch = x[np.take(order, range(10 * step, 10 * step + 10), mode="wrap")]
        code = sparse_encode(batch, found.T, algorithm="lasso_lars", alpha=1.0)
        weight = 10.0 * (step + 1) if step < 9 else 100.0 + step + 1 - 10
        kept = (weight + 1 - 10) / (weight + 1)
        codes = kept * codes + code.T @ code
        products = kept * products + batch.T @ code
        rest = products - found @ codes
        for k in range(atoms):
            rest += np.outer(found[:, k], codes[k])
            found[:, k] = rest @ codes[k]
            if np.linalg.norm(found[:, k]) < 1e-10:  # no patch has it
                found[:, k], codes[k] = rng.normal(size=len(found)), 0.0
            found[:, k] /= np.linalg.norm(found[:, k])
            rest -= np.outer(found[:, k], codes[k])
    return found.T


if __name__ == "__main__":
    main()
