"""Draw docs/method.png: the 72 transformations of an image, and the scores of a measured run.

python -m docs.method
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from transformations import Transformer
from utils.datasets import load_dataset
from utils.results import Run, read_run

AUTOMOBILE = 1
IMAGE = 4
"""Of the automobiles: one seen from the side, at which every turn and shift shows."""


def main() -> None:
    """The command at the head of this file."""
    data = load_dataset("cifar10")
    image = data.x_train[data.y_train == AUTOMOBILE][IMAGE]
    run = Run(Path("results"), "cifar10", "transformations", AUTOMOBILE, 0)
    normal, scores, details = read_run(run.path)
    scores, auroc = scores["dirichlet"] / 72, details["metrics"]["dirichlet"]["auroc"]

    transformer = Transformer()
    images = transformer.transform_batch(np.repeat(image[None], 72, axis=0), np.arange(72))
    # rows: flip and rotation; columns: translation; two white pixels between images
    grid = images.reshape(2, 9, 4, 32, 32, 3).transpose(0, 2, 1, 3, 4, 5).reshape(8, 9, 32, 32, 3)
    framed = np.pad(grid, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=255)
    mosaic = framed.transpose(0, 2, 1, 3, 4).reshape(8 * 34, 9 * 34, 3)

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    left.imshow(mosaic, interpolation="nearest")
    left.set_axis_off()
    left.set_title("an automobile under 72 transformations:\na network learns which is which")
    low, high = np.quantile(scores, [0.005, 1])
    style = {"bins": np.linspace(low, high, 70), "density": True, "alpha": 0.65}
    scores = np.maximum(scores, low)
    right.hist(scores[normal], label="automobiles, as in training", color="#3b76b5", **style)
    right.hist(scores[~normal], label="nine other classes, never seen", color="#d0453e", **style)
    right.set_title(f"scores of the CIFAR-10 test set: AUROC {100 * auroc:.1f} %")
    right.set(xlabel="normality score, mean over the transformations", yticks=[])
    right.set_ylim(top=1.2 * right.get_ylim()[1])
    right.legend(frameon=False)
    right.spines[["left", "top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_name("method.png"), dpi=110)


if __name__ == "__main__":
    main()
