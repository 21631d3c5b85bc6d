"""What the early end of a training costs: `detect.py fit` as it is by default, and at full length.

    python -m benchmarks.pace --dataset cifar10 --class 1 --seed 0

Images of a class go through `detect.py fit`, which holds a fifth of them out: once as by default,
and once at the recipe's full length. Prints a line of JSON: of the steps of the full length, those
that each made, the seconds of training, and the AUROC, in percent, of the data set's test images by
the detector's own score.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import detect
from benchmarks.options import folder_parser
from benchmarks.validation import parse_setting
from models.image_scorer import ImageScorer
from models.recipes import RECIPES
from utils.commands import file_path
from utils.datasets import Dataset, load_dataset
from utils.device import device_name
from utils.metrics import auroc


def main() -> None:
    """The command at the head of this file."""
    parser = folder_parser(__doc__)
    add = parser.add_argument
    add("--models", type=file_path, metavar="FOLDER", help="where to keep the models")
    add("--test-images", type=int, metavar="N", help="a random so many (default: all)")
    add("--recipe", choices=RECIPES, default="best_short", help="default: best_short")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="of the recipe, any")
    options = parser.parse_args()

    recipe = RECIPES[options.recipe] | dict(map(parse_setting, options.set))
    RECIPES[options.recipe] = recipe  # detect.py is to take it so
    data = load_dataset(options.dataset, options.data_dir)
    chosen = good_images(data, options)
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder, "good")
        write_images(good, chosen)
        command = ["fit", good, "--size", data.x_train.shape[1], "--quiet"]
        command += ["--recipe", options.recipe, "--seed", options.seed, "--output"]
        model = f"{options.dataset}_{options.label}_{options.seed}"
        paced, full = (
            Path(options.models or folder, f"{model}_{name}.keras") for name in ("paced", "full")
        )
        fits = {"paced": fitted([*command, paced], paced)}
        detector = fits["paced"].detector
        n, k = detector.details_["images"], detector.transformer_.n_transforms
        samples = detector.training_samples(n)
        fits["full"] = fitted([*command, full, "--epochs", samples / (n * k)], full)
    found = {
        "dataset": options.dataset,
        "class": data.class_names[options.label],
        "seed": options.seed,
        "images": len(chosen),
        "recipe": recipe,
        "device": device_name(),
        "full steps": round(samples / detector.batch_size),
    }
    tested = np.random.default_rng(0).permutation(len(data.x_test))[: options.test_images]
    x = data.x_test[tested]
    normal = data.y_test[tested] == options.label
    for name, scorer in fits.items():
        detector = scorer.detector
        scores = detector.score_samples(scorer.prepare(np.broadcast_to(x, (*x.shape[:3], 3))))
        found[name] = {
            "steps": round(detector.record_["training_samples"] / detector.batch_size),
            "seconds": round(detector.seconds_["training"], 1),
            "auroc": round(100 * auroc(normal, scores), 2),
        }
    print(json.dumps(found), flush=True)


def good_images(data: Dataset, options: argparse.Namespace) -> np.ndarray:
    """Random images of the class, by the options of `folder_parser`."""
    mine = data.x_train[data.y_train == options.label]
    return np.random.default_rng(options.seed).permutation(mine)[: options.images]


def write_images(folder: Path, images: np.ndarray) -> None:
    """Write images (n, h, w, 1 or 3) as PNGs to a new folder."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:05}.png")


def fitted(command: list, model: Path) -> ImageScorer:
    """The model that a command line of detect.py writes; what it prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        if status := detect.main(list(map(str, command))):
            sys.exit(status)
    return ImageScorer(model, None, max_pixels=0, verbose=0)  # it reads no files


if __name__ == "__main__":
    main()
