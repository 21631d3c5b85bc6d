"""How many training images alpha needs: AUROC of the Dirichlet score against their number.

    python -m benchmarks.alpha_images [--classes 1,2] [--recipe fast]

A detector is trained on each class; then alpha is estimated from the responses to a random n of its
training images, for growing n, and all alphas score the same responses of the test set.
"""

import numpy as np

from benchmarks.options import recipe_parser
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.datasets import load_dataset
from utils.device import device_name
from utils.dirichlet import estimate_alpha, normality_score
from utils.metrics import auroc

SIZES = (25, 50, 100, 250, 500, 1000, 2500, 5000)


def main() -> None:
    """Print a table of AUROC and of the distance of alpha from that of all images."""
    parser = recipe_parser(__doc__, classes="1,2")
    parser.add_argument("--epochs", type=float, help="the recipe's own by default")
    options = parser.parse_args()

    data = load_dataset(options.dataset, options.data_dir)
    settings = RECIPES[options.recipe] | ({"epochs": options.epochs} if options.epochs else {})
    print(f"{device_name()}\n{options.dataset}, recipe {options.recipe}, seed 0")
    for class_index in map(int, options.classes.split(",")):
        x = data.x_train[data.y_train == class_index]
        x = x[np.random.default_rng(0).permutation(len(x))]
        detector = TransformationDetector(**settings).fit(x)
        alphas = alphas_of(detector, x, [n for n in SIZES if n < len(x)] + [len(x)])
        scores = {n: np.empty(len(data.x_test)) for n in alphas}
        for part, log_p in detector.log_responses(data.x_test):
            for n, alpha in alphas.items():
                scores[n][part] = normality_score(alpha, log_p)
        print(f"\n{data.class_names[class_index]}\n{'images':>8}{'AUROC':>10}{'alpha off by':>15}")
        normal, final = data.y_test == class_index, alphas[len(x)]
        for n, alpha in alphas.items():
            off = np.median(np.abs(alpha / final - 1))
            print(f"{n:8}{100 * auroc(normal, scores[n]):10.2f}{100 * off:13.1f} %", flush=True)


def alphas_of(
    detector: TransformationDetector, x: np.ndarray, sizes: list[int]
) -> dict[int, np.ndarray]:
    """Alpha (m, k) from the first n of images x, for each n of the growing sizes."""
    alphas, done = {}, 0
    sums = np.zeros((2, *detector.alpha_.shape))
    for n in sizes:
        for _, log_p in detector.log_responses(x[done:n]):
            sums += np.exp(log_p).sum(0), log_p.sum(0)
        done = n
        alphas[n] = estimate_alpha(*sums / n)
    return alphas


if __name__ == "__main__":
    main()
