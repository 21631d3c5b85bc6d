"""Compare recipes without a test image: train on a part of a class, score held-out images.

    python -m benchmarks.validation --classes 1,3 --set samples=108000
    python -m benchmarks.validation --set optimizer=adam --set learning_rate=4e-3

Of each class's training images a tenth is held out; the anomalies are training images of the other
classes. Prints, a line a class, how well the network knows the held-out images' transformations
(accuracy, negative log-likelihood) and the AUROC of every score.
"""

import json

import numpy as np

from benchmarks.options import recipe_parser
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.datasets import load_dataset
from utils.device import device_name
from utils.metrics import auroc

ANOMALIES = 1500


def main() -> None:
    """The command at the head of this file."""
    parser = recipe_parser(__doc__, classes="1,3")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="of the detector, any"
    )
    options = parser.parse_args()

    settings = RECIPES[options.recipe] | dict(map(parse_setting, options.set))
    data = load_dataset(options.dataset, options.data_dir)
    print(f"{device_name()}\n{options.dataset}, {settings}")
    for class_index in map(int, options.classes.split(",")):
        found = validate(data, class_index, settings)
        values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"{data.class_names[class_index]}: {values}", flush=True)


def parse_setting(text: str) -> tuple[str, object]:
    """name=value, the value a number where it is one, otherwise text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def validate(data, class_index: int, settings: dict) -> dict[str, float]:
    """Seconds of training, accuracy, negative log-likelihood, and AUROC by score, of one class."""
    rng = np.random.default_rng(7)
    x = rng.permutation(data.x_train[data.y_train == class_index])
    others = rng.permutation(data.x_train[data.y_train != class_index])[:ANOMALIES]
    kept = len(x) - len(x) // 10
    detector = TransformationDetector(**settings, verbose=0).fit(x[:kept])
    x = np.concatenate([x[kept:], others])
    normal = np.arange(len(x)) < len(x) - len(others)
    log_p = np.concatenate([part for _, part in detector.log_responses(x[normal])])
    i = np.arange(len(detector.scored_indices_))
    return {
        "training s": detector.seconds_["training"],
        "accuracy": np.mean(log_p.argmax(-1) == detector.scored_indices_),
        "nll": -log_p[:, i, detector.scored_indices_].mean(),
    } | {name: auroc(normal, values) for name, values in detector.scores(x).items()}


if __name__ == "__main__":
    main()
