"""Section 6: why geometric transformations find anomalies, shown on pairs of MNIST digits.

    python intuition_experiments.py             the paper's pairs and Figure 1
    python intuition_experiments.py --pairs     the pairs alone; --figure: Figure 1 alone
    python intuition_experiments.py --normal 4 --anomaly 9 --transformations 0,0,0,0 0,0,0,2

The last form takes any two digits and any transformations, each as FLIP,TX,TY,K: flip (0 or 1),
pixels along rows and along columns, quarter turns.

The paper does not name the network of the pairs; here it is Figure 1's, trained as there. Nor does
the paper say along which axis it translates by 7 pixels, so both are run. Runs are kept in
<results-dir>/intuition/pairs.csv; a run that is there is not repeated.

Figure 1 changes two of its published settings, which --figure-epochs 10 --sigma 0.28 gives: 1 epoch
instead of 10, after which a network is so sure that zeros hardly change, and a Gaussian filter of
0.34 instead of 0.28 pixels. That takes eight times as much of a pixel in each step, so that what
the score does not hold up fades within the 200 steps, and zeros open into threes.
"""

if __name__ == "__main__":
    from utils import startup

    startup.start()  # first: what follows takes seconds to load

import argparse
import itertools
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy.ndimage import gaussian_filter

from models.transformation_detector import TransformationDetector
from transformations import SimpleTransformer, TransformationSet, all_transformed
from utils.backend import backend, input_gradient, keras_defaults
from utils.commands import experiment_parser, run_command, seed_number, whole_number
from utils.datasets import Dataset, load_dataset
from utils.detector import to_unit_range
from utils.device import commit
from utils.files import claim, replacing
from utils.metrics import auroc
from utils.tables import markdown, number, with_sem

SIDE = 32
"""MNIST's 28 pixels, padded."""

IDENTITY, FLIP = (False, 0, 0, 0), (True, 0, 0, 0)

PAIRS = [
    (8, 3, [IDENTITY, FLIP]),
    (3, 8, [IDENTITY, FLIP]),
    (8, 3, [IDENTITY, (False, 7, 0, 0)]),
    (8, 3, [IDENTITY, (False, 0, 7, 0)]),
]
"""Normal digit, anomaly and transformations of the paper's experiments, the last in both axes."""

PUBLISHED = Path(__file__).with_name("utils") / "published_intuition.csv"

SCORES = ["dirichlet", "simplified"]
KEY = ["normal", "anomaly", "transformations", "epochs", "side", "backend", "seed"]
"""The columns of pairs.csv that say which run a row is."""


def main(arguments: list[str] | None = None) -> int:
    """Run the experiments of a command line; returns the exit status."""
    options = parse_arguments(arguments)
    return run_command(command, options, stopped="stopped; the same command goes on from here")


@keras_defaults()
def command(options: argparse.Namespace) -> None:
    """The pairs and the figure that are asked for."""
    folder = options.results_dir / "intuition"
    print(f"results go to {folder}/")
    data = load_dataset("mnist", options.data_dir)
    if options.pairs:
        with claim(folder / "pairs.csv"):
            run_pairs(data, folder / "pairs.csv", options)
        print(f"\nAUROC in %, mean ± SEM\n\n{to_text(summarise(folder / 'pairs.csv'))}")
    if options.figure:
        with claim(folder / "figure1.png"):
            draw_figure(data, folder / "figure1.png", options)


# ---------------------------------------------------------------------------------------- network


class SmallDetector(TransformationDetector):
    """The method with Figure 1's network, which sees pixels in [0, 1]."""

    def _create_network(self):
        keras.utils.set_random_seed(self.settings_.seed)
        inputs = keras.Input(self.image_shape_, dtype="float32")
        x = layers.Rescaling(1 / 2, 1 / 2)(inputs)
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(layers.BatchNormalization()(x))
        x = layers.Dense(10, activation="relu")(layers.Flatten()(x))
        head = layers.Dense(self.transformer_.n_transforms)
        return keras.Model(inputs, head(layers.BatchNormalization()(x)))


def train(
    x: np.ndarray, transformations: TransformationSet, *, epochs: int = 10, seed: int = 0
) -> SmallDetector:
    """The detector of bytes x (n, h, w, c), trained in batches of 64 by Adam as Keras has it.

    The last tenth of the images is left out: the authors watched the loss on it.
    """
    how = {"batch_size": 64, "precision": "float32", "seed": seed, "verbose": 0}
    detector = SmallDetector(transformations, epochs=epochs, **how)
    return detector.fit(to_unit_range(x[: len(x) * 9 // 10]))


# ------------------------------------------------------------------------------------------ pairs


def run_pairs(data: Dataset, path: Path, options: argparse.Namespace) -> None:
    """Train and score what pairs.csv has no row of yet; the file is replaced after each run."""
    runs = read_pairs(path) if path.exists() else pd.DataFrame(columns=KEY)
    for seed, (normal, anomaly, moves) in itertools.product(range(options.seeds), options.chosen):
        transformations = TransformationSet(moves)
        names = " | ".join(transformations.names)
        values = (normal, anomaly, names, options.epochs, SIDE, backend(), seed)
        key = dict(zip(KEY, values, strict=True))
        if (runs[KEY] == pd.Series(key)).all(axis=1).any():
            continue
        row = run_pair(data, normal, anomaly, transformations, options.epochs, seed)
        keras.utils.clear_session(free_memory=True)
        runs = pd.DataFrame([*runs.to_dict("records"), key | row])
        with replacing(path) as partial:
            runs.to_csv(partial, index=False)
        print(
            f"normal {normal}, anomaly {anomaly}, {names}, seed {seed}: AUROC in % "
            f"{row['dirichlet']}, simplified score {row['simplified']}; {row['seconds']} s",
            flush=True,
        )


def run_pair(
    data: Dataset, normal: int, anomaly: int, transformations: TransformationSet, epochs, seed
) -> dict:
    """One run: both scores' AUROC in percent on the test images of the two digits."""
    start = time.perf_counter()
    x = data.x_train[data.y_train == normal]
    detector = train(x, transformations, epochs=epochs, seed=seed)
    tested = np.isin(data.y_test, (normal, anomaly))
    scores = detector.scores(to_unit_range(data.x_test[tested]))
    is_normal = data.y_test[tested] == normal
    row = {name: round(100 * auroc(is_normal, scores[name]), 3) for name in SCORES}
    made = {name: detector.details_[name] for name in ("device", "versions")}
    return row | {"seconds": round(time.perf_counter() - start, 1)} | made | {"commit": commit()}


def read_pairs(path: Path) -> pd.DataFrame:
    """The runs of a pairs.csv; ValueError where it holds none.

    Files that name no side are of images that were not padded, by convolutions without padding, and
    of trainings on all of them.
    """
    try:
        runs = pd.read_csv(path)
    except ValueError as error:  # pandas's errors, and bytes that are no text
        raise ValueError(f"{path} is damaged ({error}); delete it") from error
    if "side" not in runs:
        runs["side"] = 28
    if not set(KEY) <= set(runs.columns):
        raise ValueError(f"{path} lacks one of the columns {', '.join(KEY)}; delete it")
    return runs


def summarise(path: Path) -> pd.DataFrame:
    """The table of a pairs.csv: mean and SEM over the seeds, in percent, beside the published.

    The published number, and the difference from it, are the Dirichlet score's, the paper's own.
    """
    grouped = read_pairs(path).groupby(KEY[:-1], sort=False)
    table = grouped[SCORES].agg(["mean", "sem"])
    table.columns = ["dirichlet", "dirichlet_sem", "simplified", "simplified_sem"]
    table["runs"] = grouped.size()
    published = pd.read_csv(PUBLISHED).rename(columns={"auroc": "published"}).assign(epochs=10)
    table = table.reset_index().merge(published, how="left", on=KEY[:4])
    return table.assign(difference=table["dirichlet"] - table["published"])


def to_text(table: pd.DataFrame) -> str:
    """The table of `summarise` in Markdown, with what else differs between runs."""
    shown = table[KEY[:3]].replace({"transformations": {r" \| ": "; "}}, regex=True)
    for name in SCORES:
        shown[f"{name} score"] = list(map(with_sem, table[name], table[f"{name}_sem"]))
    shown["runs"] = table["runs"]
    shown["published"] = table["published"].map(number)
    shown["difference"] = table["difference"].map(lambda value: number(value, "+.1f"))
    differing = [name for name in KEY[3:-1] if table[name].nunique() > 1]
    return markdown(shown.join(table[differing]))


# --------------------------------------------------------------------------------------- figure 1


def ascend(
    network: keras.Model,
    x: np.ndarray,
    transformations: TransformationSet,
    *,
    steps: int = 200,
    step_size: float = 0.99 * 5,
    quantile: float = 0.8,
    sigma: float = 0.28,
) -> np.ndarray:
    """Images x (n, h, w, c) in [0, 1], changed by gradient ascent of their simplified score.

    network: from images in [-1, 1] to logits. In each step the entries of the gradient g with |g x|
    under its quantile over the image count as 0, and the image is smoothed by a Gaussian filter of
    sigma pixels afterwards. At the end it is clipped to [0, 1], and pixels under the quantile
    become 0.
    """
    k = len(transformations)
    maps = transformations.index_maps(*x.shape[1:3])

    def score(images):
        moved = all_transformed(2 * images - 1, maps)
        responses = ops.softmax(network(moved, training=False))
        return ops.trace(ops.reshape(responses, (-1, k, k)), axis1=1, axis2=2) / k

    def cut(numbers, by):
        lowest = np.quantile(by, quantile, axis=(1, 2, 3), keepdims=True)
        return np.where(by < lowest, 0, numbers)

    images = np.asarray(x, np.float32)
    for _ in range(steps):
        gradient = input_gradient(score, ops.convert_to_tensor(images))
        gradient = ops.convert_to_numpy(gradient)
        images = images + step_size * cut(gradient, by=abs(gradient * images))
        images = gaussian_filter(images, (0, sigma, sigma, 0)).astype(np.float32)
    images = images.clip(0, 1)
    return cut(images, by=images)


def draw_figure(data: Dataset, path: Path, options: argparse.Namespace) -> None:
    """Figure 1: the first four zeros and threes of the test set before and after the ascent."""
    from matplotlib.figure import Figure

    start = time.perf_counter()
    simple = SimpleTransformer()
    x = data.x_train[data.y_train == 3]
    detector = train(x, simple, epochs=options.figure_epochs, seed=options.figure_seed)
    figure = Figure(figsize=(5.2, 5.3), layout="constrained")
    print(f"\nFigure 1 is {path}")
    parts = zip(figure.subfigures(1, 2), "ab", (0, 3), ("zeros", "threes"), strict=True)
    for part, letter, digit, name in parts:
        before = data.x_test[data.y_test == digit][:4] / np.float32(255)
        after = ascend(detector.network_, before, simple, sigma=options.sigma)
        part.suptitle(f"({letter}) {name}, before and after")
        panels = part.subplots(4, 2).T
        means = []
        for column, images in zip(panels, (before, after), strict=True):
            scores = detector.scores(2 * images - 1)["simplified"]
            means.append(f"{scores.mean():.2f}")
            for panel, image, score in zip(column, images, scores, strict=True):
                panel.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
                panel.set_title(f"score {score:.2f}", fontsize=8)
                panel.set_axis_off()
        print(f"simplified score of {name} {' -> '.join(means)}")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100)
    print(f"{time.perf_counter() - start:.0f} s")


# ------------------------------------------------------------------------------------ command line


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = experiment_parser(__doc__)
    add = parser.add_argument
    add("--pairs", action="store_true", help="only the paper's pairs")
    add("--figure", action="store_true", help="only Figure 1")
    add("--normal", type=int, choices=range(10), help="a pair of one's own: the normal digit")
    add("--anomaly", type=int, choices=range(10), help="and the anomaly")
    text = "and the transformations to tell apart (default: identity and flip)"
    add("--transformations", type=transformation, nargs="+", metavar="FLIP,TX,TY,K", help=text)
    add("--seeds", type=whole_number, default=5, help="runs of each pair (default: 5)")
    add("--epochs", type=whole_number, default=10, help="of a pair's training (default: 10)")
    add("--figure-epochs", type=whole_number, default=1, help="of Figure 1's training (default: 1)")
    add("--sigma", type=float, default=0.34, help="Figure 1's filter, pixels (default: 0.34)")
    add("--figure-seed", type=seed_number, default=0, help="Figure 1's seed (default: 0)")
    options = parser.parse_args(arguments)
    own = options.normal is not None
    if own != (options.anomaly is not None):
        parser.error("--normal and --anomaly go together")
    if options.transformations and not own:
        parser.error("--transformations goes with --normal and --anomaly")
    if own and options.normal == options.anomaly:
        parser.error(f"--normal and --anomaly are both {options.normal}: choose two digits")
    if not 0 < options.sigma <= 5:
        parser.error(f"--sigma is {options.sigma}, expected a number above 0, at most 5")
    pair = (options.normal, options.anomaly, options.transformations or [IDENTITY, FLIP])
    options.chosen = [pair] if own else PAIRS
    everything = not (own or options.pairs or options.figure)
    options.pairs |= own or everything
    options.figure |= everything
    return options


def transformation(text: str) -> tuple[int, ...]:
    """FLIP,TX,TY,K as a tuple, for argparse."""
    try:
        values = tuple(int(part) for part in text.split(","))
        TransformationSet([values]).index_maps(SIDE, SIDE)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no FLIP,TX,TY,K: {error}") from error
    return values


if __name__ == "__main__":
    sys.exit(main())
